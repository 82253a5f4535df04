#pragma once

#include <string>
#include <utility>
#include <vector>

#include "models/chat_template/ast.h"
#include "models/chat_template/render_context.h"

namespace isotherm::chat {

// Runs a parsed template once. Errors and the budget are the context's. One thread.
class Evaluator {
 public:
  using Variables = std::vector<std::pair<std::string, Value>>;
  Evaluator(RenderContext& context, Variables globals, size_t max_output_bytes)
      : context_(context), max_output_bytes_(max_output_bytes) {
    scopes_.push_back({std::move(globals)});
  }

  // What the template writes; unspecified if the context has failed.
  Text Run(const Body& body);

 private:
  enum class Flow { kNext, kBreak, kContinue };
  struct Scope {
    Variables variables;
    bool macro = false;  // names are looked for here and inside, then in the globals only
  };
  class ScopeGuard;
  class DepthGuard;

  Flow Execute(const Body& body);
  Flow ExecuteStatement(const Statement& statement);
  Flow ExecuteFor(const ForStatement& node);
  void ExecuteSet(const SetStatement& node);
  bool BindTargets(const std::vector<std::string>& targets, const Value& value);
  std::vector<Value> FilterItems(const ForStatement& node, const std::vector<Value>& items);
  Value RunMacro(const MacroStatement& macro, const Arguments& arguments);
  void Write(const Text& text);

  void Assign(const std::string& name, Value value);
  Value Lookup(const std::string& name);

  Value Evaluate(const Expression& node);
  Value EvaluateCall(const Expression& node);
  Value EvaluateCompare(const Expression& node);
  Value EvaluateConcat(const Expression& node);
  Value EvaluateContainer(const Expression& node);
  Value EvaluateSlice(const Expression& node);
  bool CompareValues(CompareOp op, const Value& left, const Value& right);
  Arguments EvaluateArguments(const Expression& node, size_t first);

  RenderContext& context_;
  const size_t max_output_bytes_;
  std::vector<Scope> scopes_;
  Text output_;  // of the template, or of the macro or block set that runs now
  int depth_ = 0;
};

}  // namespace isotherm::chat
