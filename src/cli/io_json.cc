// SPDX-License-Identifier: Apache-2.0
#include "cli/io_json.h"

#include <utility>

namespace byre {

namespace {

std::string without_end(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

}  // namespace

void IoJson::begin(std::string_view command) {
  object_ = Json::object();
  blank_ = command.find_first_not_of(" \t\r\n") == std::string_view::npos;
  object_["command"] = Json(command);
  object_["result"] = Json("ok");
}

void IoJson::end(bool failed) {
  const std::string output = std::exchange(output_, {});
  const std::string messages = take_messages();
  const bool blank = std::exchange(blank_, true);
  if (blank) return;
  if (failed) {
    object_["result"] = Json("failed");
    if (!object_.contains("error"))
      object_["error"] = Json{{"message", without_end(messages.empty() ? output : messages)}};
  } else if (!messages.empty()) {
    object_["messages"] = Json(messages);
  }
  if (!output.empty()) object_["output"] = Json(output);
  print_(to_json_line(object_) + "\n");
}

void IoJson::err(std::string_view text) {
  if (text.starts_with(prefix_)) text.remove_prefix(prefix_.size());
  messages_ += text;
}

void IoJson::facts(Json facts, bool background) {
  if (background) return print_(to_json_line(facts) + "\n");
  for (const Json::Member& member : facts.members()) object_[member.key] = member.value;
}

std::string IoJson::take_messages() { return without_end(std::exchange(messages_, {})); }

}  // namespace byre
