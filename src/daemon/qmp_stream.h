// SPDX-License-Identifier: Apache-2.0
/// Stream: text as it comes from a client, in pieces, into the JSON values that it consists of.
///
///     stream.feed(piece);
///     for (Message m = stream.next(now); m.kind != Message::Kind::none; m = stream.next(now)) ...
///
/// Values follow one another with or without space between them; nothing ends one but its own last
/// byte, so a newline has no meaning.  Text may stand in single quotes, as QEMU's programs take it.
///   * `wrong`: a value that is no JSON.  It was skipped, and the next one is read as if nothing
///   had
///     happened: where it ends is told by brackets alone, as they were counted.
///   * `broken`: a limit was crossed.  There is no way on, only the end of this connection.
/// Invariant: never more than Limits::text_max bytes and one piece are kept; a value has at most
/// `depth_max` levels and `items_max` values in it; no key comes twice in one object.
/// Cost: linear in the text.
/// Not here: what values mean (qmp_session.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/units.h"
#include "daemon/qmp_json.h"
#include "io/op.h"

namespace byre::qmp {

struct Message {
  enum class Kind : uint8_t {
    none,    ///< More text is needed.
    value,   ///< `value`
    wrong,   ///< `problem`
    broken,  ///< `problem`
  };
  Kind kind = Kind::none;
  Json value = {};
  std::string problem = {};
};

class Stream {
 public:
  struct Limits {
    size_t text_max = 1 * MiB;    ///< Bytes of one value.
    uint32_t depth_max = 100;     ///< Levels of objects and arrays.
    uint32_t items_max = 65536;   ///< Values in one.
    uint32_t rate_max = 100'000;  ///< Values in one second.
  };
  Stream() : Stream(Limits{}) {}
  explicit Stream(Limits limits) : limits_(limits) {}

  /// next() has said that there is nothing more; asserted.
  void feed(std::string_view piece);
  Message next(Instant now);
  /// Has a value begun that has not ended?
  bool is_inside() const { return !text_.empty(); }

 private:
  /// Takes one byte; true when the value ends with it.
  bool take(char c);
  bool take_outside(char c);
  Message finish(Instant now);
  Message broken(std::string problem);

  Limits limits_;
  std::string piece_;
  size_t at_ = 0;     ///< In the piece.
  std::string text_;  ///< Of the value that has begun, in double quotes.
  int braces_ = 0;
  int brackets_ = 0;
  char quote_ = '\0';  ///< Inside of a text: what ends it.
  bool escaped_ = false;
  bool word_ = false;  ///< A value that is neither text nor group.
  std::string broken_;
  Instant second_;  ///< When the second began in which `values_` came.
  uint32_t values_ = 0;
};

/// One value.  `problem` is filled when there is none.
Json parse_json(const std::string& text, const Stream::Limits& limits, std::string& problem);

}  // namespace byre::qmp
