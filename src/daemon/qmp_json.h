// SPDX-License-Identifier: Apache-2.0
/// Json: a value that came from a client or goes to one.
///
/// The library is nlohmann's, which parses options of devices as well (job/option_tree.cc).  Here
/// nothing throws, so values are looked at before they are read: is_string() before get_ref().
/// Cost: objects are maps, so a hostile object costs no more than its size times a logarithm.
/// Not here: the text of a stream (qmp_stream.h), types of arguments (qmp_type.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace byre::qmp {

using Json = nlohmann::json;

/// One line, ASCII only; what is not UTF-8 is shown as U+FFFD.  `pretty`: over several lines.
inline std::string text_of_json(const Json& value, bool pretty = false) {
  return value.dump(pretty ? 4 : -1, ' ', true, Json::error_handler_t::replace);
}

/// The text of a value that is known to be text.
inline const std::string& text_in(const Json& value) { return value.get_ref<const std::string&>(); }

}  // namespace byre::qmp
