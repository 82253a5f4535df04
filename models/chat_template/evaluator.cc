#include "models/chat_template/evaluator.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "models/chat_template/arithmetic.h"
#include "models/chat_template/builtins.h"
#include "models/chat_template/format.h"

namespace isotherm::chat {
namespace {

// Statements, expressions and macro calls inside one another, together; a frame is some hundred
// bytes, so that this fits a small thread stack.
constexpr int kMaxEvaluationDepth = 256;

// Units of the budget for a step; a byte copied costs one.
constexpr size_t kStepCost = 32;

}  // namespace

class Evaluator::ScopeGuard {
 public:
  ScopeGuard(Evaluator& evaluator, bool macro) : scopes_(evaluator.scopes_) {
    scopes_.push_back({{}, macro});
  }
  ~ScopeGuard() { scopes_.pop_back(); }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

 private:
  std::vector<Scope>& scopes_;
};

class Evaluator::DepthGuard {
 public:
  explicit DepthGuard(Evaluator& evaluator) : depth_(evaluator.depth_) {
    if (++depth_ > kMaxEvaluationDepth) evaluator.context_.Fail("calls are nested too deeply");
    evaluator.context_.Charge(kStepCost);
  }
  ~DepthGuard() { --depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  int& depth_;
};

Text Evaluator::Run(const Body& body) {
  Execute(body);
  return std::move(output_);
}

void Evaluator::Write(const Text& text) {
  if (!context_.Charge(text.size())) return;
  if (text.size() > max_output_bytes_ - output_.size()) {
    context_.Fail(absl::StrCat("writes more than ", max_output_bytes_, " bytes"));
    return;
  }
  output_.Append(text);
}

Evaluator::Flow Evaluator::Execute(const Body& body) {
  const DepthGuard depth(*this);
  for (const auto& statement : body) {
    if (context_.failed()) return Flow::kBreak;
    const Flow flow = ExecuteStatement(*statement);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Evaluator::Flow Evaluator::ExecuteStatement(const Statement& statement) {
  if (!context_.Charge(kStepCost)) return Flow::kBreak;
  if (const auto* text = std::get_if<TextStatement>(&statement.node)) {
    Write(*As<Text>(text->text));
  } else if (const auto* output = std::get_if<OutputStatement>(&statement.node)) {
    const Value value = Evaluate(*output->value);
    if (const Text* direct = As<Text>(value)) {
      Write(*direct);
    } else {
      Write(ToText(context_, value));
    }
  } else if (const auto* branches = std::get_if<IfStatement>(&statement.node)) {
    for (const IfStatement::Branch& branch : branches->branches) {
      const bool taken = branch.condition == nullptr || Truthy(Evaluate(*branch.condition));
      if (context_.failed()) return Flow::kBreak;
      if (taken) return Execute(branch.body);
    }
  } else if (const auto* loop = std::get_if<ForStatement>(&statement.node)) {
    return ExecuteFor(*loop);
  } else if (const auto* set = std::get_if<SetStatement>(&statement.node)) {
    ExecuteSet(*set);
  } else if (const auto* macro = std::get_if<MacroStatement>(&statement.node)) {
    Assign(macro->name, Function{macro->name, macro});
  } else if (std::holds_alternative<BreakStatement>(statement.node)) {
    return Flow::kBreak;
  } else {
    return Flow::kContinue;
  }
  return Flow::kNext;
}

bool Evaluator::BindTargets(const std::vector<std::string>& targets, const Value& value) {
  if (targets.size() == 1) {
    Assign(targets[0], value);
    return true;
  }
  const auto parts = context_.Iterate(value);
  if (context_.failed()) return false;
  if (parts->items.size() != targets.size()) {
    context_.Fail(absl::StrCat("cannot put ", parts->items.size(), " values into ", targets.size(),
                               " names"));
    return false;
  }
  for (size_t i = 0; i < targets.size(); ++i) Assign(targets[i], parts->items[i]);
  return true;
}

std::vector<Value> Evaluator::FilterItems(const ForStatement& node,
                                          const std::vector<Value>& items) {
  std::vector<Value> kept;
  for (const Value& item : items) {
    const ScopeGuard scope(*this, false);
    if (!context_.Charge(kStepCost) || !BindTargets(node.targets, item)) break;
    if (Truthy(Evaluate(*node.filter))) kept.push_back(item);
  }
  return kept;
}

Evaluator::Flow Evaluator::ExecuteFor(const ForStatement& node) {
  Loop* loop = context_.NewLoop();
  loop->items = context_.Iterate(Evaluate(*node.items));
  if (context_.failed()) return Flow::kBreak;
  if (node.filter != nullptr) {
    const Value kept = context_.MakeList(FilterItems(node, loop->items->items));
    if (context_.failed()) return Flow::kBreak;
    loop->items = std::get<std::shared_ptr<const List>>(kept);
  }
  const size_t size = loop->items->items.size();
  for (; loop->index < size && !context_.failed(); ++loop->index) {
    const ScopeGuard scope(*this, false);
    if (!context_.Charge(kStepCost)) break;
    Assign("loop", static_cast<const Loop*>(loop));
    if (!BindTargets(node.targets, loop->items->items[loop->index])) break;
    if (Execute(node.body) == Flow::kBreak) break;
  }
  if (context_.failed()) return Flow::kBreak;
  if (size == 0) return Execute(node.otherwise);
  return Flow::kNext;
}

void Evaluator::ExecuteSet(const SetStatement& node) {
  Value value;
  if (node.value != nullptr) {
    value = Evaluate(*node.value);
  } else {
    Text outer = std::exchange(output_, Text());
    {
      const ScopeGuard scope(*this, false);
      Execute(node.body);
    }
    value = MakeText(std::exchange(output_, std::move(outer)));
  }
  if (context_.failed()) return;
  std::vector<Value> parts = {value};
  if (node.targets.size() > 1) {
    parts = context_.Iterate(value)->items;
    if (parts.size() != node.targets.size()) {
      context_.Fail(absl::StrCat("cannot put ", parts.size(), " values into ", node.targets.size(),
                                 " names"));
      return;
    }
  }
  for (size_t i = 0; i < node.targets.size(); ++i) {
    const SetStatement::Target& target = node.targets[i];
    if (target.attribute.empty()) {
      Assign(target.name, parts[i]);
      continue;
    }
    const Value object = Lookup(target.name);
    const auto* space = std::get_if<Namespace*>(&object);
    if (space == nullptr) {
      context_.Fail(absl::StrCat("'", target.name, "' is not a namespace"));
      return;
    }
    auto& entries = (*space)->entries;
    if (!context_.Charge(entries.size() + kStepCost)) return;
    const auto known = std::find_if(entries.begin(), entries.end(),
                                    [&](const auto& e) { return e.first == target.attribute; });
    if (known != entries.end()) {
      known->second = parts[i];
    } else {
      entries.emplace_back(target.attribute, parts[i]);
    }
  }
}

void Evaluator::Assign(const std::string& name, Value value) {
  Variables& variables = scopes_.back().variables;
  if (!context_.Charge(variables.size() + 1)) return;
  for (auto& [key, old] : variables) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

Value Evaluator::Lookup(const std::string& name) {
  for (size_t i = scopes_.size(); i-- > 0;) {
    const Scope& scope = scopes_[i];
    if (!context_.Charge(scope.variables.size() + 1)) return Undefined{};
    for (const auto& [key, value] : scope.variables) {
      if (key == name) return value;
    }
    if (scope.macro) i = 1;  // the globals come next
  }
  if (IsFunction(name)) return Function{name, nullptr};
  return Undefined{name.substr(0, 64)};
}

Value Evaluator::RunMacro(const MacroStatement& macro, const Arguments& arguments) {
  if (arguments.positional.size() > macro.parameters.size()) {
    return context_.Fail(absl::StrCat("macro '", macro.name, "' takes ", macro.parameters.size(),
                                      " arguments, got ", arguments.positional.size()));
  }
  for (const auto& argument : arguments.named) {
    const bool known =
        std::any_of(macro.parameters.begin(), macro.parameters.end(),
                    [&](const auto& parameter) { return parameter.name == argument.first; });
    if (!known) {
      return context_.Fail(
          absl::StrCat("macro '", macro.name, "' has no argument '", argument.first, "'"));
    }
  }
  const DepthGuard depth(*this);
  Text outer = std::exchange(output_, Text());
  {
    const ScopeGuard scope(*this, /*macro=*/true);
    for (size_t i = 0; i < macro.parameters.size() && !context_.failed(); ++i) {
      const MacroStatement::Parameter& parameter = macro.parameters[i];
      const Value* given = arguments.Get(i, parameter.name);
      if (given != nullptr) {
        Assign(parameter.name, *given);
      } else if (parameter.fallback != nullptr) {
        Assign(parameter.name, Evaluate(*parameter.fallback));
      } else {
        Assign(parameter.name, Undefined{parameter.name});
      }
    }
    if (!context_.failed()) Execute(macro.body);
  }
  return MakeText(std::exchange(output_, std::move(outer)));
}

Arguments Evaluator::EvaluateArguments(const Expression& node, size_t first) {
  Arguments arguments;
  for (size_t i = first; i < node.children.size(); ++i) {
    arguments.positional.push_back(Evaluate(*node.children[i]));
  }
  for (const auto& [name, value] : node.keywords) {
    arguments.named.emplace_back(name, Evaluate(*value));
  }
  return arguments;
}

Value Evaluator::EvaluateCall(const Expression& node) {
  const Expression& callee = *node.children[0];
  if (callee.op == Op::kAttribute) {
    const Value object = Evaluate(*callee.children[0]);
    const Arguments arguments = EvaluateArguments(node, 1);
    if (context_.failed()) return Undefined{};
    return CallMethod(context_, object, callee.name, arguments);
  }
  const Value function = Evaluate(callee);
  const Arguments arguments = EvaluateArguments(node, 1);
  if (context_.failed()) return Undefined{};
  const auto* target = As<Function>(function);
  if (target == nullptr) {
    if (const auto* undefined = As<Undefined>(function)) {
      return context_.Fail(absl::StrCat("'", undefined->name, "' is undefined"));
    }
    return context_.Fail(absl::StrCat("a value of type ", TypeName(function), " is no function"));
  }
  if (target->macro != nullptr) return RunMacro(*target->macro, arguments);
  return CallFunction(context_, target->name, arguments);
}

bool Evaluator::CompareValues(CompareOp op, const Value& left, const Value& right) {
  if (op == CompareOp::kIn) return Contains(context_, left, right);
  if (op == CompareOp::kNotIn) return !Contains(context_, left, right);
  if (!context_.Charge(std::min(SizeOf(left), SizeOf(right)))) return false;
  if (op == CompareOp::kEqual) return Equal(left, right);
  if (op == CompareOp::kNotEqual) return !Equal(left, right);
  int order = 0;
  if (!Compare(left, right, &order)) {
    context_.Fail(
        absl::StrCat("cannot order values of types ", TypeName(left), " and ", TypeName(right)));
    return false;
  }
  switch (op) {
    case CompareOp::kLess:
      return order < 0;
    case CompareOp::kLessEqual:
      return order <= 0;
    case CompareOp::kGreater:
      return order > 0;
    default:
      return order >= 0;
  }
}

Value Evaluator::EvaluateCompare(const Expression& node) {
  Value left = Evaluate(*node.children[0]);
  for (size_t i = 0; i < node.compares.size() && !context_.failed(); ++i) {
    Value right = Evaluate(*node.children[i + 1]);
    if (context_.failed() || !CompareValues(node.compares[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Evaluator::EvaluateConcat(const Expression& node) {
  Text out;
  for (const ExpressionPtr& child : node.children) {
    const Value part = Evaluate(*child);
    if (!context_.Charge(SizeOf(part))) return Undefined{};
    out.Append(ToText(context_, part));
  }
  return MakeText(std::move(out));
}

Value Evaluator::EvaluateContainer(const Expression& node) {
  std::vector<Value> values;
  for (const ExpressionPtr& child : node.children) values.push_back(Evaluate(*child));
  if (node.op != Op::kDict) return context_.MakeList(std::move(values), node.op == Op::kTuple);
  std::vector<std::pair<Value, Value>> entries;
  for (size_t i = 0; i + 1 < values.size(); i += 2) {
    if (!context_.Charge(entries.size() + 1)) return Undefined{};
    const auto known = std::find_if(entries.begin(), entries.end(), [&](const auto& entry) {
      return Equal(entry.first, values[i]);
    });
    if (known != entries.end()) {
      known->second = values[i + 1];
    } else {
      entries.emplace_back(values[i], values[i + 1]);
    }
  }
  return context_.MakeDict(std::move(entries));
}

Value Evaluator::EvaluateSlice(const Expression& node) {
  const Value object = Evaluate(*node.children[0]);
  Value parts[3];
  const Value* given[3] = {nullptr, nullptr, nullptr};
  for (size_t i = 0; i < 3; ++i) {
    if (node.children[i + 1] == nullptr) continue;
    parts[i] = Evaluate(*node.children[i + 1]);
    given[i] = &parts[i];
  }
  if (context_.failed()) return Undefined{};
  return GetSlice(context_, object, given[0], given[1], given[2]);
}

Value Evaluator::Evaluate(const Expression& node) {
  const DepthGuard depth(*this);
  if (context_.failed()) return Undefined{};
  switch (node.op) {
    case Op::kLiteral:
      return node.literal;
    case Op::kName:
      return Lookup(node.name);
    case Op::kList:
    case Op::kTuple:
    case Op::kDict:
      return EvaluateContainer(node);
    case Op::kAttribute:
      return GetAttribute(context_, Evaluate(*node.children[0]), node.name);
    case Op::kIndex: {
      const Value object = Evaluate(*node.children[0]);
      return GetItem(context_, object, Evaluate(*node.children[1]));
    }
    case Op::kSlice:
      return EvaluateSlice(node);
    case Op::kCall:
      return EvaluateCall(node);
    case Op::kFilter: {
      const Value value = Evaluate(*node.children[0]);
      const Arguments arguments = EvaluateArguments(node, 1);
      return context_.failed() ? Value() : ApplyFilter(context_, node.name, value, arguments);
    }
    case Op::kTest: {
      const Value value = Evaluate(*node.children[0]);
      const Arguments arguments = EvaluateArguments(node, 1);
      return !context_.failed() && ApplyTest(context_, node.name, value, arguments);
    }
    case Op::kNot:
      return !Truthy(Evaluate(*node.children[0]));
    case Op::kAnd:
    case Op::kOr: {
      Value left = Evaluate(*node.children[0]);
      return Truthy(left) == (node.op == Op::kOr) ? left : Evaluate(*node.children[1]);
    }
    case Op::kNegate:
      return Negate(context_, Evaluate(*node.children[0]));
    case Op::kPositive:
      return Arithmetic(context_, Op::kAdd, int64_t{0}, Evaluate(*node.children[0]));
    case Op::kConcat:
      return EvaluateConcat(node);
    case Op::kCompare:
      return EvaluateCompare(node);
    case Op::kIf:
      if (Truthy(Evaluate(*node.children[1]))) return Evaluate(*node.children[0]);
      return node.children[2] == nullptr ? Value(Undefined{"else"}) : Evaluate(*node.children[2]);
    case Op::kAdd:
    case Op::kSubtract:
    case Op::kMultiply:
    case Op::kDivide:
    case Op::kFloorDivide:
    case Op::kModulo:
    case Op::kPower: {
      const Value left = Evaluate(*node.children[0]);
      const Value right = Evaluate(*node.children[1]);
      return context_.failed() ? Value() : Arithmetic(context_, node.op, left, right);
    }
  }
  return Undefined{};
}

}  // namespace isotherm::chat
