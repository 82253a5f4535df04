#include "cli/ui/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "cli/ui/remedy.h"
#include "common/process/log.h"

namespace isotherm::cli {

Console RealConsole() {
  Console console{.out = std::cout, .err = std::cerr};
  console.err_fd = STDERR_FILENO;
  console.out_is_terminal = ::isatty(STDOUT_FILENO) != 0;
  console.err_is_terminal = ::isatty(STDERR_FILENO) != 0;
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  console.color = console.err_is_terminal && (no_color == nullptr || no_color[0] == '\0') &&
                  term != nullptr && std::string(term) != "dumb";
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) {
    console.width = size.ws_col;
  }
  return console;
}

void PrintError(Console& console, const absl::Status& status) {
  const char* red = console.color ? "\033[1;31m" : "";
  const char* off = console.color ? "\033[0m" : "";
  console.err << "isotherm: " << red << "error:" << off << " "
              << EscapeControl(std::string(status.message())) << "\n";
  if (const std::string remedy = TryOf(status); !remedy.empty()) {
    console.err << "  try: " << EscapeControl(remedy) << "\n";
  }
  console.err.flush();
}

void PrintNote(Console& console, absl::string_view text) {
  console.err << "isotherm: " << std::string(text) << "\n";
  console.err.flush();
}

}  // namespace isotherm::cli
