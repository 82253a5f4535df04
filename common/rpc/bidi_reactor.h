#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

namespace isotherm::rpc {

// A bidirectional stream seen as two queues. Subclasses get each message by OnMessage() and may
// Send() from any thread; the base keeps one read and one write in flight, as the library demands.
//
// Terminal: OnClosed() runs exactly once, after the last OnMessage() and before the reactor deletes
// itself; no Send() or Close() may be under way by another thread after it returns, so whoever
// sends does it through an object that OnClosed() detaches (see Outlet).
template <typename Request, typename Response>
class BidiReactor : public grpc::ServerBidiReactor<Request, Response> {
 public:
  // What other threads hold: sends until the stream is closed, then does nothing. Thread-safe.
  class Outlet {
   public:
    explicit Outlet(BidiReactor* reactor) : reactor_(reactor) {}
    // False once the stream is closed.
    bool Send(Response response) {
      std::lock_guard lock(mu_);
      if (reactor_ == nullptr) return false;
      reactor_->Enqueue(std::move(response));
      return true;
    }
    void Close(const grpc::Status& status) {
      std::lock_guard lock(mu_);
      if (reactor_ != nullptr) reactor_->FinishWhenSent(status);
    }

   private:
    friend class BidiReactor;
    void Detach() {
      std::lock_guard lock(mu_);
      reactor_ = nullptr;
    }
    std::mutex mu_;
    BidiReactor* reactor_;
  };

  BidiReactor() : outlet_(std::make_shared<Outlet>(this)) {}

  const std::shared_ptr<Outlet>& outlet() const { return outlet_; }

  void OnReadDone(bool ok) final {
    if (!ok) {
      FinishWhenSent(grpc::Status::OK);
      return;
    }
    OnMessage(request_);
    this->StartRead(&request_);
  }

  void OnWriteDone(bool ok) final {
    std::lock_guard lock(mu_);
    writing_ = false;
    if (!ok) {
      pending_.clear();
    } else {
      pending_.pop_front();
    }
    WriteNextLocked();
  }

  void OnCancel() final { FinishWhenSent(grpc::Status::CANCELLED); }

  void OnDone() final {
    outlet_->Detach();
    OnClosed();
    delete this;
  }

 protected:
  ~BidiReactor() override = default;

  // Call at the end of the subclass's constructor.
  void Begin() { this->StartRead(&request_); }

  // Must not block.
  virtual void OnMessage(const Request& request) = 0;
  virtual void OnClosed() = 0;

 private:
  void Enqueue(Response response) {
    std::lock_guard lock(mu_);
    if (finish_.has_value()) return;
    pending_.push_back(std::move(response));
    WriteNextLocked();
  }

  void FinishWhenSent(const grpc::Status& status) {
    std::lock_guard lock(mu_);
    if (finish_.has_value()) return;
    finish_ = status;
    WriteNextLocked();
  }

  void WriteNextLocked() {
    if (writing_ || finished_) return;
    if (!pending_.empty()) {
      writing_ = true;
      this->StartWrite(&pending_.front());
    } else if (finish_.has_value()) {
      finished_ = true;
      this->Finish(*finish_);
    }
  }

  const std::shared_ptr<Outlet> outlet_;
  Request request_;
  std::mutex mu_;
  std::deque<Response> pending_;  // front: being written while writing_
  bool writing_ = false;
  bool finished_ = false;
  std::optional<grpc::Status> finish_;
};

}  // namespace isotherm::rpc
