#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/chat_template/value.h"

namespace isotherm::chat {

// The parsed template. Trees are at most kMaxTreeDepth deep, so that recursion over them is
// bounded.
constexpr int kMaxTreeDepth = 96;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class Op {
  kLiteral,    // literal
  kName,       // name
  kList,       // children
  kTuple,      // children
  kDict,       // children: key, value, key, value
  kAttribute,  // children[0].name
  kIndex,      // children[0][children[1]]
  kSlice,      // children[0][children[1]:children[2]:children[3]], null where left out
  kCall,       // children[0](children[1..], keywords)
  kFilter,     // children[0] | name(children[1..], keywords)
  kTest,       // children[0] is name(children[1..])
  kNot,
  kAnd,
  kOr,
  kNegate,
  kPositive,
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kConcat,
  kCompare,  // children[0] compares[0] children[1] compares[1] ...
  kIf,       // children[0] if children[1] else children[2], which may be null
};

enum class CompareOp { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

struct Expression {
  Op op = Op::kLiteral;
  int line = 0;
  int depth = 1;
  std::string name;
  Value literal;
  std::vector<ExpressionPtr> children;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  std::vector<CompareOp> compares;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct TextStatement {
  Value text;
};
struct OutputStatement {
  ExpressionPtr value;
};
struct IfStatement {
  struct Branch {
    ExpressionPtr condition;  // null: else
    Body body;
  };
  std::vector<Branch> branches;
};
struct ForStatement {
  std::vector<std::string> targets;
  ExpressionPtr items;
  ExpressionPtr filter;  // may be null
  Body body;
  Body otherwise;
};
struct SetStatement {
  struct Target {
    std::string name;
    std::string attribute;  // of a namespace; empty: a variable
  };
  std::vector<Target> targets;
  ExpressionPtr value;  // null: the text of `body`
  Body body;
};
struct MacroStatement {
  struct Parameter {
    std::string name;
    ExpressionPtr fallback;  // may be null
  };
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
};
struct BreakStatement {};
struct ContinueStatement {};

struct Statement {
  int line = 0;
  std::variant<TextStatement, OutputStatement, IfStatement, ForStatement, SetStatement,
               MacroStatement, BreakStatement, ContinueStatement>
      node;
};

}  // namespace isotherm::chat
