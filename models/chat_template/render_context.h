#pragma once

#include <chrono>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "models/chat_template/value.h"

namespace isotherm::chat {

// Arguments of a call, filter or test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // By place, else by name, else null.
  const Value* Get(size_t place, absl::string_view name) const;
};

// What one rendering may still spend, its first error, and the objects that outlive values.
// Operations go on after an error with undefined values; loops ask failed().
class RenderContext {
 public:
  RenderContext(size_t budget, std::chrono::system_clock::time_point now)
      : budget_(budget), now_(now) {}

  // Takes `units` (about one per byte or item touched). False, with an error noted, once the budget
  // is spent; the caller must then not do the work.
  bool Charge(size_t units);
  // Notes the first error; `what` may quote user text, which is cut and made printable.
  Value Fail(absl::string_view what);
  bool failed() const { return !status_.ok(); }
  const absl::Status& status() const { return status_; }
  std::chrono::system_clock::time_point now() const { return now_; }

  // Error if nesting gets too deep.
  Value MakeList(std::vector<Value> items, bool tuple = false);
  Value MakeDict(std::vector<std::pair<Value, Value>> entries);
  Namespace* NewNamespace() { return &namespaces_.emplace_back(); }
  Loop* NewLoop() { return &loops_.emplace_back(); }

  // As Python's iter(): items, keys or characters; error for what has none. Never null; keep the
  // pointer while going over the items.
  std::shared_ptr<const List> Iterate(const Value& value);

  // Reads an optional integer argument; false, with an error noted, if it is something else.
  bool ReadInteger(const Value* argument, int64_t fallback, int64_t* out);

 private:
  size_t budget_;
  const std::chrono::system_clock::time_point now_;
  absl::Status status_;
  std::deque<Namespace> namespaces_;
  std::deque<Loop> loops_;
};

}  // namespace isotherm::chat
