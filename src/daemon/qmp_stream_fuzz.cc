// SPDX-License-Identifier: Apache-2.0
/// The input is what a client sends; its first byte says in how large pieces.  However it is cut,
/// the same values come out, and limits hold.
#include <cstdint>
#include <vector>

#include "base/assert.h"
#include "base/bytes.h"
#include "daemon/qmp_stream.h"

using namespace byre;
using namespace byre::qmp;

namespace {

constexpr Stream::Limits kLimits{.text_max = 512, .depth_max = 12, .items_max = 40, .rate_max = 64};

struct Heard {
  std::vector<std::string> messages;
  bool is_broken = false;
  bool operator==(const Heard&) const = default;
};

uint32_t depth_of(const Json& value) {
  uint32_t below = 0;
  if (value.is_structured()) {
    for (const Json& part : value) below = std::max(below, depth_of(part));
  }
  return value.is_structured() ? below + 1 : 0;
}

Heard listen(std::string_view text, size_t step) {
  Stream stream(kLimits);
  Heard heard;
  for (size_t at = 0; at < text.size() && !heard.is_broken; at += step) {
    stream.feed(text.substr(at, step));
    for (Message m = stream.next({}); m.kind != Message::Kind::none; m = stream.next({})) {
      BYRE_ASSERT((m.kind == Message::Kind::value) == m.problem.empty());
      BYRE_ASSERT(depth_of(m.value) <= kLimits.depth_max);
      heard.is_broken = m.kind == Message::Kind::broken;
      heard.messages.push_back(m.problem.empty() ? text_of_json(m.value) : m.problem);
      if (heard.is_broken) break;
    }
  }
  return heard;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(text_of(bytes_at(data + 1, size - 1)));
  BYRE_ASSERT(listen(text, text.size() + 1) == listen(text, data[0] % 16 + 1));
  return 0;
}
