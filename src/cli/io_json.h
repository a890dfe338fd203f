// SPDX-License-Identifier: Apache-2.0
/// IoJson: `byre io --output=json`, an object in a line of its own for each command that has ended.
///
///     {"command": "read -P 1 0 64k", "result": "ok", "offset": 0, "bytes": 65536, "elapsed-ns":
///     81}
///     {"command": "read 9G 1k", "result": "failed", "error": {"code": "io", "message": "..."}}
///     {"background": "aio_write", "result": "ok", "offset": 0, "bytes": 512, "elapsed-ns": 40}
///
/// Invariant: a command that is no blank line gives one object, between begin() and end(), and its
/// `error` is there when its `result` is "failed".  What commands say in words only is `output`,
/// and `messages` where it is about something wrong. Not here: what the facts are (io_shell.h).
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "cli/json.h"

namespace byre {

class IoJson {
 public:
  /// `program`: what messages begin with, which is left out here.
  IoJson(std::string program, std::function<void(std::string_view line)> print)
      : prefix_(std::move(program) + ": "), print_(std::move(print)) {}

  void begin(std::string_view command);
  void end(bool failed);
  void out(std::string_view text) { output_ += text; }
  void err(std::string_view text);
  void facts(Json facts, bool background);

  /// What was said outside of commands; lines.
  std::string take_messages();

 private:
  std::string prefix_;
  std::function<void(std::string_view)> print_;
  Json object_;
  bool blank_ = true;  ///< No command has begun that is told of.
  std::string output_;
  std::string messages_;
};

}  // namespace byre
