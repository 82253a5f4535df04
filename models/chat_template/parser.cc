#include "models/chat_template/parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace isotherm::chat {
namespace {

// Binary operators by how tightly they bind; `not`, comparison and power have their own functions.
struct BinaryOperator {
  absl::string_view text;
  int level;
  Op op;
};
constexpr int kConcatLevel = 2;
constexpr BinaryOperator kBinaryOperators[] = {
    {"+", 1, Op::kAdd},      {"-", 1, Op::kSubtract}, {"~", kConcatLevel, Op::kConcat},
    {"*", 3, Op::kMultiply}, {"/", 3, Op::kDivide},   {"//", 3, Op::kFloorDivide},
    {"%", 3, Op::kModulo},
};
constexpr int kTightestLevel = 3;

// Every function returns null, or leaves its output alone, once an error has been noted.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    Body body = ParseBody({});
    if (status_.ok() && Now().kind != TokenKind::kEnd) {
      Fail(absl::StrCat("'", Now().text, "' closes no block"));
    }
    if (!status_.ok()) return status_;
    return body;
  }

 private:
  // Counts how deep the parser's own calls are nested.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kMaxTreeDepth) parser_.Fail("nested too deeply");
    }
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  const Token& Now() const { return tokens_[at_]; }
  const Token& Ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void Next() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool failed() const { return !status_.ok(); }
  std::nullptr_t Fail(absl::string_view what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat("chat template, line ", Now().line, ": ", what.substr(0, 200)));
    }
    return nullptr;
  }
  bool IsName(absl::string_view name) const {
    return Now().kind == TokenKind::kName && Now().text == name;
  }
  bool IsOperator(absl::string_view op) const {
    return Now().kind == TokenKind::kOperator && Now().text == op;
  }
  bool TakeName(absl::string_view name) {
    if (!IsName(name)) return false;
    Next();
    return true;
  }
  bool TakeOperator(absl::string_view op) {
    if (!IsOperator(op)) return false;
    Next();
    return true;
  }
  bool Expect(bool taken, absl::string_view wanted) {
    if (!taken) Fail(absl::StrCat("got '", Now().text, "', wanted ", wanted));
    return taken && !failed();
  }
  std::string ExpectName() {
    std::string name = Now().text;
    Expect(Now().kind == TokenKind::kName, "a name");
    Next();
    return name;
  }
  void ExpectBlockEnd() {
    if (Expect(Now().kind == TokenKind::kBlockEnd, "the end of the tag")) Next();
  }

  // Statements -----------------------------------------------------------------------------------

  // Up to a block tag whose name is among `ends`, which is left with Now() at the name.
  Body ParseBody(std::initializer_list<absl::string_view> ends) {
    Body body;
    const Nesting nesting(*this);
    while (!failed() && Now().kind != TokenKind::kEnd) {
      auto statement = std::make_unique<Statement>();
      statement->line = Now().line;
      if (Now().kind == TokenKind::kText) {
        statement->node = TextStatement{TrustedText(Now().text)};
        Next();
      } else if (Now().kind == TokenKind::kOutputBegin) {
        Next();
        statement->node = OutputStatement{ParseExpressionOrTuple()};
        if (Expect(Now().kind == TokenKind::kOutputEnd, "}}")) Next();
      } else {
        Next();  // {%
        const absl::string_view name = Now().text;
        if (std::find(ends.begin(), ends.end(), name) != ends.end()) return body;
        if (ends.size() == 0 && name.substr(0, 3) == "end") return body;
        if (!ParseBlock(*statement, body)) continue;
      }
      body.push_back(std::move(statement));
    }
    if (ends.size() != 0) Fail(absl::StrCat("wanted {% ", absl::StrJoin(ends, " or "), " %}"));
    return body;
  }

  // False if the block adds no statement of its own.
  bool ParseBlock(Statement& statement, Body& body) {
    const std::string name = ExpectName();
    if (name == "if") {
      ParseIf(statement.node.emplace<IfStatement>());
    } else if (name == "for") {
      ParseFor(statement.node.emplace<ForStatement>());
    } else if (name == "set") {
      ParseSet(statement.node.emplace<SetStatement>());
    } else if (name == "macro") {
      ParseMacro(statement.node.emplace<MacroStatement>());
    } else if (name == "break" || name == "continue") {
      if (loops_ == 0) Fail(absl::StrCat(name, " outside of a loop"));
      if (name == "break") {
        statement.node = BreakStatement{};
      } else {
        statement.node = ContinueStatement{};
      }
      ExpectBlockEnd();
    } else if (name == "generation") {
      // Marks the model's own text for training; for a prompt only what is inside counts.
      ExpectBlockEnd();
      Body inner = ParseBody({"endgeneration"});
      EndBlock("endgeneration");
      for (auto& part : inner) body.push_back(std::move(part));
      return false;
    } else {
      Fail(absl::StrCat("block '", name, "' is not supported"));
    }
    return true;
  }

  void EndBlock(absl::string_view name) {
    if (Expect(TakeName(name), name)) ExpectBlockEnd();
  }

  void ParseIf(IfStatement& node) {
    while (!failed()) {
      IfStatement::Branch& branch = node.branches.emplace_back();
      branch.condition = ParseExpressionOrTuple();
      ExpectBlockEnd();
      branch.body = ParseBody({"elif", "else", "endif"});
      if (!TakeName("elif")) break;
    }
    if (!failed() && TakeName("else")) {
      ExpectBlockEnd();
      Body otherwise = ParseBody({"endif"});
      node.branches.push_back({nullptr, std::move(otherwise)});
    }
    EndBlock("endif");
  }

  void ParseFor(ForStatement& node) {
    const bool bracket = TakeOperator("(");
    do {
      node.targets.push_back(ExpectName());
    } while (!failed() && TakeOperator(",") && !IsName("in"));
    if (bracket) Expect(TakeOperator(")"), "')'");
    Expect(TakeName("in"), "'in'");
    node.items = ParseExpressionOrTuple(/*with_condition=*/false);
    if (TakeName("if")) node.filter = ParseExpression();
    if (IsName("recursive")) Fail("recursive loops are not supported");
    ExpectBlockEnd();
    ++loops_;
    node.body = ParseBody({"else", "endfor"});
    --loops_;
    if (!failed() && TakeName("else")) {
      ExpectBlockEnd();
      node.otherwise = ParseBody({"endfor"});
    }
    EndBlock("endfor");
  }

  void ParseSet(SetStatement& node) {
    do {
      SetStatement::Target& target = node.targets.emplace_back();
      target.name = ExpectName();
      if (TakeOperator(".")) target.attribute = ExpectName();
    } while (!failed() && TakeOperator(","));
    if (TakeOperator("=")) {
      node.value = ParseExpressionOrTuple();
      ExpectBlockEnd();
      return;
    }
    if (node.targets.size() != 1) Fail("a set block has one name");
    ExpectBlockEnd();
    node.body = ParseBody({"endset"});
    EndBlock("endset");
  }

  void ParseMacro(MacroStatement& node) {
    node.name = ExpectName();
    Expect(TakeOperator("("), "'('");
    while (!failed() && !IsOperator(")")) {
      MacroStatement::Parameter& parameter = node.parameters.emplace_back();
      parameter.name = ExpectName();
      if (TakeOperator("=")) parameter.fallback = ParseExpression();
      if (!IsOperator(")")) Expect(TakeOperator(","), "','");
    }
    Expect(TakeOperator(")"), "')'");
    ExpectBlockEnd();
    const int outer_loops = std::exchange(loops_, 0);
    node.body = ParseBody({"endmacro"});
    loops_ = outer_loops;
    EndBlock("endmacro");
  }

  // Expressions ----------------------------------------------------------------------------------

  ExpressionPtr Make(Op op, int line) {
    auto node = std::make_unique<Expression>();
    node->op = op;
    node->line = line;
    return node;
  }
  void Add(Expression& parent, ExpressionPtr child) {
    if (child != nullptr) {
      parent.depth = std::max(parent.depth, child->depth + 1);
      if (parent.depth > kMaxTreeDepth) Fail("expression is nested too deeply");
    }
    parent.children.push_back(std::move(child));
  }
  ExpressionPtr Unary(Op op, ExpressionPtr child) {
    ExpressionPtr node = Make(op, Now().line);
    Add(*node, std::move(child));
    return node;
  }
  ExpressionPtr Binary(Op op, ExpressionPtr left, ExpressionPtr right) {
    ExpressionPtr node = Unary(op, std::move(left));
    Add(*node, std::move(right));
    return node;
  }

  // `a, b` without brackets is a tuple.
  ExpressionPtr ParseExpressionOrTuple(bool with_condition = true) {
    const auto parse = [&] { return with_condition ? ParseExpression() : ParseLogic(0); };
    ExpressionPtr first = parse();
    if (!IsOperator(",")) return first;
    ExpressionPtr tuple = Unary(Op::kTuple, std::move(first));
    while (!failed() && TakeOperator(",")) {
      if (Now().kind == TokenKind::kBlockEnd || Now().kind == TokenKind::kOutputEnd) break;
      Add(*tuple, parse());
    }
    return tuple;
  }

  ExpressionPtr ParseExpression() {
    const Nesting nesting(*this);
    if (failed()) return nullptr;
    ExpressionPtr value = ParseLogic(0);
    while (!failed() && IsName("if")) {
      ExpressionPtr node = Make(Op::kIf, Now().line);
      Next();
      Add(*node, std::move(value));
      Add(*node, ParseLogic(0));
      Add(*node, TakeName("else") ? ParseExpression() : nullptr);
      value = std::move(node);
    }
    return value;
  }

  // Level 0: or; 1: and; 2: not and comparison.
  ExpressionPtr ParseLogic(int level) {
    if (level == 2) return ParseNot();
    const absl::string_view word = level == 0 ? "or" : "and";
    ExpressionPtr left = ParseLogic(level + 1);
    while (!failed() && TakeName(word)) {
      left = Binary(level == 0 ? Op::kOr : Op::kAnd, std::move(left), ParseLogic(level + 1));
    }
    return left;
  }

  ExpressionPtr ParseNot() {
    int nots = 0;
    while (IsName("not") && !(Ahead().kind == TokenKind::kName && Ahead().text == "in")) {
      Next();
      if (++nots > kMaxTreeDepth) return Fail("expression is nested too deeply");
    }
    ExpressionPtr value = ParseCompare();
    for (; nots > 0; --nots) value = Unary(Op::kNot, std::move(value));
    return value;
  }

  std::optional<CompareOp> TakeCompareOp() {
    if (Now().kind == TokenKind::kName) {
      if (TakeName("in")) return CompareOp::kIn;
      if (IsName("not") && Ahead().kind == TokenKind::kName && Ahead().text == "in") {
        Next();
        Next();
        return CompareOp::kNotIn;
      }
      return std::nullopt;
    }
    if (TakeOperator("==")) return CompareOp::kEqual;
    if (TakeOperator("!=")) return CompareOp::kNotEqual;
    if (TakeOperator("<=")) return CompareOp::kLessEqual;
    if (TakeOperator(">=")) return CompareOp::kGreaterEqual;
    if (TakeOperator("<")) return CompareOp::kLess;
    if (TakeOperator(">")) return CompareOp::kGreater;
    return std::nullopt;
  }

  ExpressionPtr ParseCompare() {
    ExpressionPtr left = ParseBinary(1);
    std::optional<CompareOp> op = failed() ? std::nullopt : TakeCompareOp();
    if (!op.has_value()) return left;
    ExpressionPtr node = Unary(Op::kCompare, std::move(left));
    for (; op.has_value() && !failed(); op = TakeCompareOp()) {
      node->compares.push_back(*op);
      Add(*node, ParseBinary(1));
    }
    return node;
  }

  ExpressionPtr ParseBinary(int level) {
    if (level > kTightestLevel) return ParsePower();
    ExpressionPtr left = ParseBinary(level + 1);
    while (!failed() && Now().kind == TokenKind::kOperator) {
      const auto* op = std::find_if(
          std::begin(kBinaryOperators), std::end(kBinaryOperators),
          [&](const BinaryOperator& o) { return o.level == level && o.text == Now().text; });
      if (op == std::end(kBinaryOperators)) break;
      Next();
      ExpressionPtr right = ParseBinary(level + 1);
      if (op->op == Op::kConcat && left != nullptr && left->op == Op::kConcat) {
        Add(*left, std::move(right));  // a ~ b ~ c is one node, however long
      } else {
        left = Binary(op->op, std::move(left), std::move(right));
      }
    }
    return left;
  }

  ExpressionPtr ParsePower() {
    ExpressionPtr left = ParseUnary(/*with_filter=*/true);
    while (!failed() && TakeOperator("**")) {
      left = Binary(Op::kPower, std::move(left), ParseUnary(true));
    }
    return left;
  }

  ExpressionPtr ParseUnary(bool with_filter) {
    const Nesting nesting(*this);
    if (failed()) return nullptr;
    ExpressionPtr value;
    if (TakeOperator("-")) {
      value = Unary(Op::kNegate, ParseUnary(false));
    } else if (TakeOperator("+")) {
      value = Unary(Op::kPositive, ParseUnary(false));
    } else {
      value = ParsePrimary();
    }
    value = ParsePostfix(std::move(value));
    return with_filter ? ParseFilters(std::move(value)) : std::move(value);
  }

  ExpressionPtr Literal(Value value) {
    ExpressionPtr node = Make(Op::kLiteral, Now().line);
    node->literal = std::move(value);
    return node;
  }

  ExpressionPtr ParsePrimary() {
    const Token token = Now();
    Next();
    switch (token.kind) {
      case TokenKind::kName:
        return ParseNamed(token);
      case TokenKind::kString: {
        std::string text = token.text;
        for (; Now().kind == TokenKind::kString; Next()) text += Now().text;
        return Literal(TrustedText(text));
      }
      case TokenKind::kInteger: {
        int64_t value = 0;
        const char* end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
          return Fail("integer does not fit 64 bits");
        }
        return Literal(value);
      }
      case TokenKind::kFloat: {
        double value = 0;
        const char* end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
          return Fail("number is out of range");
        }
        return Literal(value);
      }
      case TokenKind::kOperator:
        if (token.text == "(") return ParseBrackets();
        if (token.text == "[") return ParseList();
        if (token.text == "{") return ParseDict();
        break;
      default:
        break;
    }
    return Fail(absl::StrCat("got '", token.text, "', wanted a value"));
  }

  ExpressionPtr ParseNamed(const Token& token) {
    const std::string& name = token.text;
    if (name == "true" || name == "True") return Literal(true);
    if (name == "false" || name == "False") return Literal(false);
    if (name == "none" || name == "None") return Literal(None{});
    for (const absl::string_view word : {"and", "or", "not", "in", "is", "if", "else"}) {
      if (name == word) return Fail(absl::StrCat("got '", name, "', wanted a value"));
    }
    ExpressionPtr node = Make(Op::kName, token.line);
    node->name = name;
    return node;
  }

  ExpressionPtr ParseBrackets() {
    ExpressionPtr tuple = Make(Op::kTuple, Now().line);
    bool comma = false;
    while (!failed() && !IsOperator(")")) {
      Add(*tuple, ParseExpression());
      if (IsOperator(")")) break;
      comma = Expect(TakeOperator(","), "',' or ')'");
    }
    Expect(TakeOperator(")"), "')'");
    if (!comma && tuple->children.size() == 1) return std::move(tuple->children[0]);
    return tuple;
  }

  ExpressionPtr ParseList() {
    ExpressionPtr list = Make(Op::kList, Now().line);
    while (!failed() && !IsOperator("]")) {
      Add(*list, ParseExpression());
      if (!IsOperator("]")) Expect(TakeOperator(","), "',' or ']'");
    }
    Expect(TakeOperator("]"), "']'");
    return list;
  }

  ExpressionPtr ParseDict() {
    ExpressionPtr dict = Make(Op::kDict, Now().line);
    while (!failed() && !IsOperator("}")) {
      Add(*dict, ParseExpression());
      Expect(TakeOperator(":"), "':'");
      Add(*dict, ParseExpression());
      if (!IsOperator("}")) Expect(TakeOperator(","), "',' or '}'");
    }
    Expect(TakeOperator("}"), "'}'");
    return dict;
  }

  ExpressionPtr ParsePostfix(ExpressionPtr value) {
    while (!failed()) {
      if (TakeOperator(".")) {
        value = Unary(Op::kAttribute, std::move(value));
        value->name = Now().text;
        Expect(Now().kind == TokenKind::kName, "a name");
        Next();
      } else if (TakeOperator("[")) {
        value = ParseSubscript(std::move(value));
      } else if (TakeOperator("(")) {
        value = Unary(Op::kCall, std::move(value));
        ParseArguments(*value);
      } else {
        break;
      }
    }
    return value;
  }

  ExpressionPtr ParseSubscript(ExpressionPtr value) {
    ExpressionPtr parts[3];
    int colons = 0;
    while (!failed() && !IsOperator("]")) {
      if (TakeOperator(":")) {
        if (++colons > 2) return Fail("a slice has at most two colons");
        continue;
      }
      if (parts[colons] != nullptr) return Fail("wanted ':' or ']'");
      parts[colons] = ParseExpression();
    }
    Expect(TakeOperator("]"), "']'");
    if (colons == 0 && parts[0] == nullptr) return Fail("wanted an index");
    ExpressionPtr node = Unary(colons == 0 ? Op::kIndex : Op::kSlice, std::move(value));
    for (int i = 0; i < (colons == 0 ? 1 : 3); ++i) Add(*node, std::move(parts[i]));
    return node;
  }

  // After '('.
  void ParseArguments(Expression& call) {
    while (!failed() && !IsOperator(")")) {
      const bool keyword = Now().kind == TokenKind::kName && Ahead().kind == TokenKind::kOperator &&
                           Ahead().text == "=";
      if (keyword) {
        std::string name = ExpectName();
        Next();
        ExpressionPtr value = ParseExpression();
        if (value != nullptr) call.depth = std::max(call.depth, value->depth + 1);
        if (call.depth > kMaxTreeDepth) Fail("expression is nested too deeply");
        call.keywords.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call.keywords.empty()) Fail("a positional argument follows a named one");
        Add(call, ParseExpression());
      }
      if (!IsOperator(")")) Expect(TakeOperator(","), "',' or ')'");
    }
    Expect(TakeOperator(")"), "')'");
  }

  ExpressionPtr ParseFilters(ExpressionPtr value) {
    while (!failed()) {
      if (TakeOperator("|")) {
        value = Unary(Op::kFilter, std::move(value));
        value->name = ExpectName();
        if (TakeOperator("(")) ParseArguments(*value);
      } else if (TakeName("is")) {
        value = ParseTest(std::move(value));
      } else if (TakeOperator("(")) {
        value = Unary(Op::kCall, std::move(value));
        ParseArguments(*value);
      } else {
        break;
      }
    }
    return value;
  }

  // A test takes arguments in brackets, or one value right behind it.
  ExpressionPtr ParseTest(ExpressionPtr value) {
    const bool negated = TakeName("not");
    ExpressionPtr test = Unary(Op::kTest, std::move(value));
    test->name = ExpectName();
    if (TakeOperator("(")) {
      ParseArguments(*test);
    } else {
      const TokenKind kind = Now().kind;
      const bool word = IsName("else") || IsName("or") || IsName("and") || IsName("is") ||
                        IsName("if") || IsName("not") || IsName("in");
      const bool starts_value = (kind == TokenKind::kName && !word) || kind == TokenKind::kString ||
                                kind == TokenKind::kInteger || kind == TokenKind::kFloat ||
                                IsOperator("[") || IsOperator("{");
      if (starts_value) Add(*test, ParsePostfix(ParsePrimary()));
    }
    return negated ? Unary(Op::kNot, std::move(test)) : std::move(test);
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<Body> ParseTemplate(std::vector<Token> tokens) {
  return Parser(std::move(tokens)).Run();
}

}  // namespace isotherm::chat
