#include "cpu_worker/engine/attachment_host.h"

#include <fcntl.h>
#include <pthread.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"

namespace isotherm::cpu {

struct AttachmentHost::Session {
  std::string peer;
  bool device_rings = false;
  std::unique_ptr<shm::ControlRegion> region;
  std::unique_ptr<shm::SlotServer> server;
  std::unique_ptr<shm::PeerWatch> watch;  // last: its thread uses the server
};

absl::StatusOr<std::unique_ptr<AttachmentHost>> AttachmentHost::Start(const Arena& arena,
                                                                      ColdEngine& engine,
                                                                      WorkerEvents& events,
                                                                      const Options& options) {
  std::unique_ptr<AttachmentHost> host(new AttachmentHost(arena, engine, events, options));
  ISOTHERM_ASSIGN_OR_RETURN(host->handoff_, shm::HandoffServer::Start(options.socket_dir));
  host->thread_ = std::thread([raw = host.get()] {
    ::pthread_setname_np(::pthread_self(), "cold-compute");
    raw->engine_.BindCaller();
    raw->Loop();
  });
  return host;
}

AttachmentHost::AttachmentHost(const Arena& arena, ColdEngine& engine, WorkerEvents& events,
                               const Options& options)
    : arena_(arena), engine_(engine), events_(events), options_(options) {}

AttachmentHost::~AttachmentHost() {
  handoff_.reset();  // no new session from here on
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
    if (current_ != nullptr) current_->server->Abort();
  }
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<shm::ArenaOffer> AttachmentHost::Open(const std::string& peer, uint64_t layout_hash,
                                                     int32_t max_rows, bool device_rings) {
  const shm::ArenaShape& shape = arena_.geometry().shape;
  if (layout_hash != shm::LayoutHash(shape)) {
    return absl::FailedPreconditionError(absl::StrCat("the gpu_worker's layout ", layout_hash,
                                                      " is not ours, ", shm::LayoutHash(shape),
                                                      "; both workers must load one model file"));
  }
  if (max_rows < 1 || max_rows > engine_.max_rows()) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_rows is ", max_rows, ", want 1 to ", engine_.max_rows()));
  }
  {
    absl::MutexLock lock(&mu_);
    for (Session* session : {current_, next_.get()}) {
      if (session == nullptr || session->server->aborted()) continue;
      if (session->peer != peer) {
        return absl::UnavailableError(
            absl::StrCat("gpu_worker ", session->peer, " is attached; one at a time"));
      }
      session->server->Abort();
    }
  }
  auto session = std::make_unique<Session>();
  session->peer = peer;
  session->device_rings = device_rings;
  ISOTHERM_ASSIGN_OR_RETURN(
      session->region,
      shm::ControlRegion::Create({.shape = {.max_rows = max_rows,
                                            .model_dim = static_cast<int32_t>(shape.model_dim),
                                            .num_neurons = static_cast<int32_t>(shape.num_neurons),
                                            .num_layers = static_cast<int32_t>(shape.num_layers)},
                                  .layout_hash = layout_hash,
                                  .nonce = shm::RandomNonce()},
                                 shm::ReadMemoryLimits()));
  ISOTHERM_ASSIGN_OR_RETURN(session->server,
                            shm::SlotServer::Create(*session->region, options_.wait, device_rings));
  ISOTHERM_ASSIGN_OR_RETURN(UniqueFd arena_fd, arena_.DuplicateFd());
  UniqueFd control_fd(::fcntl(session->region->fd(), F_DUPFD_CLOEXEC, 0));
  if (!control_fd.valid()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot duplicate a descriptor: ", std::strerror(errno)));
  }
  shm::ArenaOffer offer{.nonce = session->region->nonce(),
                        .socket_path = handoff_->path(),
                        .arena_bytes = arena_.geometry().arena_bytes,
                        .arena_is_model_file = arena_.is_model_file(),
                        .control_bytes = session->region->bytes()};
  {
    absl::MutexLock lock(&mu_);
    offered_ = offer.nonce;
  }
  // std::function must be copyable, so that the session travels in a shared pointer to its owner.
  auto owner = std::make_shared<std::unique_ptr<Session>>(std::move(session));
  offer.handoff_token = handoff_->Offer(std::move(arena_fd), std::move(control_fd),
                                        [this, owner](UniqueFd connection, pid_t) {
                                          OnTaken(std::move(*owner), std::move(connection));
                                        });
  return offer;
}

void AttachmentHost::OnTaken(std::unique_ptr<Session> session, UniqueFd connection) {
  shm::SlotServer* const server = session->server.get();
  // From here on, not from when the compute thread is free: the peer counts our heartbeats already.
  session->watch = std::make_unique<shm::PeerWatch>(
      std::move(connection), *session->region,
      shm::PeerWatch::Callbacks{.on_dead =
                                    [server](const absl::Status& why) {
                                      LogWarning("{}", std::string(why.message()));
                                      server->Abort();
                                    },
                                .wake = [server] { server->WakeSelf(); }},
      options_.watch);
  std::unique_ptr<Session> replaced;
  {
    absl::MutexLock lock(&mu_);
    if (current_ != nullptr) current_->server->Abort();
    replaced = std::exchange(next_, std::move(session));
  }
}

absl::Status AttachmentHost::Close(const shm::Nonce& nonce) {
  absl::MutexLock lock(&mu_);
  for (Session* session : {current_, next_.get()}) {
    if (session != nullptr && session->region->nonce() == nonce) {
      session->server->Abort();
      return absl::OkStatus();
    }
  }
  if (offered_ == nonce) {
    handoff_->Withdraw();
    return absl::OkStatus();
  }
  return absl::NotFoundError("no attachment of that nonce");
}

void AttachmentHost::Loop() {
  while (true) {
    std::unique_ptr<Session> session;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](AttachmentHost* host) ABSL_EXCLUSIVE_LOCKS_REQUIRED(host->mu_) {
            return host->stop_ || host->next_ != nullptr;
          },
          this));
      if (stop_) return;
      session = std::move(next_);
      current_ = session.get();
    }
    attached_.store(true, std::memory_order_release);
    LogInfo("gpu_worker {} attached{}", session->peer,
            session->device_rings ? ", its device rings by itself" : "");
    events_.StateChanged();
    if (session->device_rings) engine_.SetSpin(options_.wait.device_spin);
    Serve(*session);
    engine_.SetSpin(std::nullopt);
    session->server->Abort();
    engine_.DropStep();
    attached_.store(false, std::memory_order_release);
    LogInfo("gpu_worker {} detached", session->peer);
    {
      absl::MutexLock lock(&mu_);
      current_ = nullptr;
    }
    session.reset();
    events_.StateChanged();
  }
}

void AttachmentHost::Serve(Session& session) {
  shm::SlotServer& server = *session.server;
  while (true) {
    const absl::StatusOr<shm::ColdLayerWork> work =
        server.Next(std::chrono::steady_clock::now() + std::chrono::seconds(1));
    if (absl::IsDeadlineExceeded(work.status())) continue;
    if (!work.ok()) {
      if (!absl::IsUnavailable(work.status())) {
        LogError("gpu_worker {} broke the slot protocol: {}", session.peer,
                 std::string(work.status().message()));
      }
      return;
    }
    absl::Status finished;
    const auto finish = [&](const shm::ColdLayerOutcome& outcome) {
      finished = server.Finish(*work, outcome);
    };
    if (work->header.layer == shm::kEndOfStep) {
      engine_.EndStep(work->header);
      finish({});
    } else if (work->cancelled) {
      finish({.status = shm::ColdLayerStatus::kCancelled});
    } else {
      engine_.Compute(ColdLayerTask::Of(*work, server.hash_nonce()), finish);
    }
    if (!finished.ok()) return;
  }
}

}  // namespace isotherm::cpu
