// A service that does what its script says: the file SCRIPT_DIR/<its name>.script, where SCRIPT_DIR
// is FAKE_SCRIPTS. Words, in order:
//   listen          announces --listen      progress:X ready   announces
//   error:TEXT      logs an error record    line:TEXT          writes TEXT to stderr
//   pid             writes its pid to SCRIPT_DIR/<name>.pid
//   first:WORD      does WORD in the first process only (counted in SCRIPT_DIR/<name>.starts)
//   exit:N kill:N   ends                    wait               until SIGTERM, then exit 0
//   wait:N          until SIGTERM, then exit N after writing "<name>" to SCRIPT_DIR/stopped
//   flood           writes 4 MB of log records
//   stuck           ignores SIGTERM for ever

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

namespace {

struct Fake {
  std::string name;
  std::string dir;
  std::string listen;
  int starts = 1;
};

int CountStart(const Fake& fake) {
  const std::string path = fake.dir + "/" + fake.name + ".starts";
  int count = 0;
  std::ifstream(path) >> count;
  std::ofstream(path) << ++count;
  return count;
}

void Announce(const std::string& line) { std::cout << line << "\n" << std::flush; }

[[noreturn]] void WaitForTerm(const Fake& fake, int exit_code) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  int got = 0;
  sigwait(&set, &got);
  std::ofstream(fake.dir + "/stopped", std::ios::app) << fake.name << "\n";
  std::_Exit(exit_code);
}

void Do(const Fake& fake, const std::string& word) {
  const size_t colon = word.find(':');
  const std::string verb = word.substr(0, colon);
  const std::string value = colon == std::string::npos ? "" : word.substr(colon + 1);
  if (verb == "listen") Announce("listening " + fake.listen);
  if (verb == "ready") Announce("ready");
  if (verb == "progress") Announce("progress " + value);
  if (verb == "line") std::cerr << value << "\n" << std::flush;
  if (verb == "error") {
    std::cerr << R"({"ts":1,"level":"error","service":"fake","msg":")" << value << "\"}\n"
              << std::flush;
  }
  if (verb == "pid") std::ofstream(fake.dir + "/" + fake.name + ".pid") << getpid();
  if (verb == "first" && fake.starts == 1) Do(fake, value);
  if (verb == "exit") std::_Exit(std::atoi(value.c_str()));
  if (verb == "kill") kill(getpid(), std::atoi(value.c_str()));
  if (verb == "wait") WaitForTerm(fake, std::atoi(value.c_str()));
  if (verb == "flood") {
    const std::string text(1000, 'x');
    for (int i = 0; i < 4000; ++i) {
      std::cerr << R"({"level":"info","msg":")" << text << "\"}\n";
    }
    std::cerr << std::flush;
  }
  if (verb == "stuck") {
    while (true) pause();
  }
}

}  // namespace

int main(int argc, char** argv) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  Fake fake;
  fake.name = std::string(argv[0]).substr(std::string(argv[0]).rfind('/') + 1);
  fake.dir = std::getenv("FAKE_SCRIPTS");
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::string(argv[i]) == "--listen") fake.listen = argv[i + 1];
  }
  fake.starts = CountStart(fake);
  std::ifstream script(fake.dir + "/" + fake.name + ".script");
  std::string word;
  while (script >> word) Do(fake, word);
  return 0;
}
