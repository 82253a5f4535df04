#include "models/chat_template/arithmetic.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace isotherm::chat {
namespace {

bool IntegerPower(int64_t base, int64_t exponent, int64_t* out) {
  *out = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(*out, base, out)) return false;
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return false;
  }
  return true;
}

Value IntegerArithmetic(RenderContext& context, Op op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  switch (op) {
    case Op::kAdd:
      overflow = __builtin_add_overflow(a, b, &out);
      break;
    case Op::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &out);
      break;
    case Op::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &out);
      break;
    case Op::kPower:
      if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
      overflow = !IntegerPower(a, b, &out);
      break;
    default: {
      if (b == 0) return context.Fail("division by zero");
      if (op == Op::kDivide) return static_cast<double>(a) / static_cast<double>(b);
      if (b == -1) {
        if (op == Op::kModulo) return int64_t{0};
        overflow = __builtin_sub_overflow(int64_t{0}, a, &out);
        break;
      }
      // Python rounds down and gives the remainder the divisor's sign.
      const bool adjust = a % b != 0 && (a < 0) != (b < 0);
      out = op == Op::kFloorDivide ? a / b - (adjust ? 1 : 0) : a % b + (adjust ? b : 0);
    }
  }
  return overflow ? context.Fail("integer does not fit 64 bits") : Value(out);
}

Value FloatArithmetic(RenderContext& context, Op op, double a, double b) {
  switch (op) {
    case Op::kAdd:
      return a + b;
    case Op::kSubtract:
      return a - b;
    case Op::kMultiply:
      return a * b;
    case Op::kPower:
      return std::pow(a, b);
    default:
      break;
  }
  if (b == 0) return context.Fail("division by zero");
  if (op == Op::kDivide) return a / b;
  if (op == Op::kFloorDivide) return std::floor(a / b);
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

// A string or list times an integer.
Value Repeat(RenderContext& context, const Value& value, int64_t times) {
  const size_t count = times > 0 ? static_cast<size_t>(times) : 0;
  size_t cost;
  if (__builtin_mul_overflow(count, SizeOf(value) + 16, &cost)) cost = SIZE_MAX;
  if (!context.Charge(cost)) return Undefined{};
  if (const Text* text = As<Text>(value)) {
    Text out;
    for (size_t i = 0; i < count; ++i) out.Append(*text);
    return MakeText(std::move(out));
  }
  const List& list = *As<List>(value);
  std::vector<Value> items;
  for (size_t i = 0; i < count; ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return context.MakeList(std::move(items), list.tuple);
}

}  // namespace

Value Arithmetic(RenderContext& context, Op op, const Value& left, const Value& right) {
  int64_t ia, ib;
  if (AsInteger(left, &ia) && AsInteger(right, &ib)) return IntegerArithmetic(context, op, ia, ib);
  double da, db;
  if (AsNumber(left, &da) && AsNumber(right, &db)) return FloatArithmetic(context, op, da, db);
  const Text* text = As<Text>(left);
  const List* list = As<List>(left);
  if (op == Op::kAdd && text != nullptr && As<Text>(right) != nullptr) {
    const Text& other = *As<Text>(right);
    if (!context.Charge(text->size() + other.size())) return Undefined{};
    Text out = *text;
    out.Append(other);
    return MakeText(std::move(out));
  }
  if (op == Op::kAdd && list != nullptr && As<List>(right) != nullptr) {
    const List& other = *As<List>(right);
    if (!context.Charge((list->items.size() + other.items.size()) * 8)) return Undefined{};
    std::vector<Value> items = list->items;
    items.insert(items.end(), other.items.begin(), other.items.end());
    return context.MakeList(std::move(items), list->tuple);
  }
  if (op == Op::kMultiply) {
    if ((text != nullptr || list != nullptr) && AsInteger(right, &ib)) {
      return Repeat(context, left, ib);
    }
    if ((As<Text>(right) != nullptr || As<List>(right) != nullptr) && AsInteger(left, &ia)) {
      return Repeat(context, right, ia);
    }
  }
  for (const Value* side : {&left, &right}) {
    if (const auto* undefined = As<Undefined>(*side)) {
      return context.Fail(absl::StrCat("'", undefined->name, "' is undefined"));
    }
  }
  return context.Fail(absl::StrCat("cannot calculate with values of types ", TypeName(left),
                                   " and ", TypeName(right)));
}

Value Negate(RenderContext& context, const Value& value) {
  if (const auto* d = As<double>(value)) return -*d;
  return Arithmetic(context, Op::kSubtract, int64_t{0}, value);
}

}  // namespace isotherm::chat
