#pragma once

#include <iosfwd>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

// Where a verb writes: data to `out`, everything else to `err`. Tests pass string streams.
struct Console {
  std::ostream& out;
  std::ostream& err;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  bool color = false;  // on err; never when NO_COLOR is set
  int width = 80;      // columns of err
  int err_fd = -1;     // of err, to ask whether a write would block; -1: never asks
};

// stdout, stderr and what is known of the terminal.
Console RealConsole();

// "isotherm: error: ..." and a "  try: ..." line when there is a remedy; control bytes escaped.
void PrintError(Console& console, const absl::Status& status);
void PrintNote(Console& console, absl::string_view text);

}  // namespace isotherm::cli
