#pragma once

#include "models/chat_template/ast.h"
#include "models/chat_template/render_context.h"

namespace isotherm::chat {

// + - * / // % ** and unary minus and plus, as Python has them; integers have 64 bits and an
// overflow is an error.
Value Arithmetic(RenderContext& context, Op op, const Value& left, const Value& right);
Value Negate(RenderContext& context, const Value& value);

}  // namespace isotherm::chat
