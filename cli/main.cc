#include "cli/app.h"
#include "cli/ui/console.h"

int main(int argc, char** argv) {
  isotherm::cli::Console console = isotherm::cli::RealConsole();
  return isotherm::cli::RunApp(argc, argv, console);
}
