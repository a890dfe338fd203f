// SPDX-License-Identifier: Apache-2.0
/// JSON laid out as qemu-img prints it, and the indented listing it makes of the same values for
/// people.
///
/// Values are nlohmann's ordered_json, so keys come out in the order in which they were put in.
/// nlohmann's own dump() is not used: it prints empty lists on one line, other escapes, and throws
/// at text that is not UTF-8.  Such bytes come out as \ufffd, so the output is always valid JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace byre {

using Json = nlohmann::ordered_json;

/// Four spaces a level; everything that is not printable ASCII is escaped.
std::string to_json(const Json& value);
/// The same in one line, without its end.
std::string to_json_line(const Json& value);

/// One line a value, "key: value", dashes in keys shown as spaces, lists numbered; `indent` levels
/// of four spaces in front.
std::string to_listing(const Json& value, int indent);

}  // namespace byre
