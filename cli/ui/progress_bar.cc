#include "cli/ui/progress_bar.h"

#include <algorithm>
#include <cmath>
#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/units.h"

namespace isotherm::cli {
namespace {

constexpr std::chrono::milliseconds kRedrawInterval{50};
constexpr int kBarCells = 24;

double Seconds(Clock::TimePoint from, Clock::TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

ProgressBar::ProgressBar(Console& console, std::string label, int64_t total_bytes,
                         const Clock& clock)
    : console_(console),
      label_(std::move(label)),
      total_bytes_(std::max<int64_t>(total_bytes, 1)),
      clock_(clock),
      start_(clock.Now()),
      last_draw_(start_ - kRedrawInterval) {}

ProgressBar::~ProgressBar() {
  if (drawn_) console_.err << "\n" << std::flush;
}

void ProgressBar::Update(int64_t done_bytes) {
  if (finished_) return;
  done_bytes_ = std::clamp(done_bytes, done_bytes_, total_bytes_);
  if (!console_.err_is_terminal) {
    PrintTenth();
    return;
  }
  const Clock::TimePoint now = clock_.Now();
  if (now - last_draw_ >= kRedrawInterval) Draw(now);
}

void ProgressBar::UpdateShare(double share) {
  Update(static_cast<int64_t>(share * static_cast<double>(total_bytes_)));
}

void ProgressBar::Finish() {
  if (finished_) return;
  done_bytes_ = total_bytes_;
  if (console_.err_is_terminal) {
    Draw(clock_.Now());
    console_.err << "\n" << std::flush;
    drawn_ = false;
  } else {
    PrintTenth();
  }
  finished_ = true;
}

void ProgressBar::Hide() {
  if (!drawn_) return;
  console_.err << "\r\033[K" << std::flush;
  drawn_ = false;
}

void ProgressBar::Draw(Clock::TimePoint now) {
  last_draw_ = now;
  drawn_ = true;
  const double share = static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_);
  const int full = static_cast<int>(share * kBarCells);
  std::string bar(static_cast<size_t>(full), '#');
  bar.append(static_cast<size_t>(kBarCells - full), '.');
  std::string line = absl::StrCat(label_, " [", bar, "] ", Describe(now));
  const auto width = static_cast<size_t>(std::max(console_.width - 1, 1));
  if (line.size() > width) line.resize(width);
  console_.err << "\r" << line << "\033[K" << std::flush;
}

void ProgressBar::PrintTenth() {
  const int tenth = static_cast<int>(static_cast<__int128>(done_bytes_) * 10 / total_bytes_);
  if (tenth <= last_tenth_) return;
  last_tenth_ = tenth;
  console_.err << label_ << ": " << Describe(clock_.Now()) << "\n" << std::flush;
}

std::string ProgressBar::Describe(Clock::TimePoint now) const {
  const double share = static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_);
  std::string text = absl::StrFormat("%3d %%  %s of %s", static_cast<int>(share * 100),
                                     FormatBytes(done_bytes_), FormatBytes(total_bytes_));
  const double seconds = Seconds(start_, now);
  if (done_bytes_ == 0 || seconds < 0.2) return text;
  const double rate = static_cast<double>(done_bytes_) / seconds;
  absl::StrAppendFormat(&text, "  %.0f MB/s", rate / 1e6);
  if (done_bytes_ < total_bytes_) {
    const double left = static_cast<double>(total_bytes_ - done_bytes_) / rate;
    absl::StrAppend(&text, "  ", FormatSeconds(left), " left");
  }
  return text;
}

std::string FormatSeconds(double seconds) {
  const auto whole = static_cast<int64_t>(std::ceil(std::clamp(seconds, 0.0, 3.6e8)));
  if (whole < 60) return absl::StrCat(whole, " s");
  if (whole < 3600) return absl::StrCat(whole / 60, " min ", whole % 60, " s");
  return absl::StrCat(whole / 3600, " h ", whole % 3600 / 60, " min");
}

}  // namespace isotherm::cli
