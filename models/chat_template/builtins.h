#pragma once

#include "absl/strings/string_view.h"
#include "models/chat_template/render_context.h"
#include "models/chat_template/value.h"

namespace isotherm::chat {

// The filters, tests, methods and functions of the template language, as Jinja and Python define
// them. Letter case is changed for ASCII only. Unknown names and wrong arguments are noted as
// errors in the context; results are then undefined.

// value | name(arguments)
Value ApplyFilter(RenderContext& context, absl::string_view name, const Value& value,
                  const Arguments& arguments);

// value is name(arguments)
bool ApplyTest(RenderContext& context, absl::string_view name, const Value& value,
               const Arguments& arguments);

// value.name(arguments)
Value CallMethod(RenderContext& context, const Value& value, absl::string_view name,
                 const Arguments& arguments);

// name(arguments); false if there is no such function.
bool IsFunction(absl::string_view name);
Value CallFunction(RenderContext& context, absl::string_view name, const Arguments& arguments);

// value.name and value[key]: undefined where there is no such item.
Value GetAttribute(RenderContext& context, const Value& value, absl::string_view name);
Value GetItem(RenderContext& context, const Value& value, const Value& key);
// value[begin:end:step]; null where left out.
Value GetSlice(RenderContext& context, const Value& value, const Value* begin, const Value* end,
               const Value* step);

// Length of a container or string in items or characters; false for other values.
bool LengthOf(const Value& value, int64_t* length);

// `needle in haystack`.
bool Contains(RenderContext& context, const Value& needle, const Value& haystack);

}  // namespace isotherm::chat
