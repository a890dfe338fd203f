// SPDX-License-Identifier: Apache-2.0
/// The input is a device tree: a name, --image-opts, and lines of a list; or an object.  What
/// parses keeps the limits, and describing it works.
#include <cstdint>

#include "job/device_tree.h"
#include "job/objects.h"

using namespace byre;

namespace {

uint32_t height_of(const DeviceNode& node) {
  uint32_t below = 0;
  for (const auto& [role, child] : node.children) {
    if (child) below = std::max(below, height_of(*child));
  }
  return below + 1;
}

void look_at(const Result<DeviceTree>& tree) {
  if (!tree) {
    BYRE_ASSERT(!tree.error().message().empty());
    return;
  }
  BYRE_ASSERT((*tree)->height == height_of(**tree));
  BYRE_ASSERT((*tree)->height <= kTreeDepthMax);
  static_cast<void>((*tree)->plain_file());
  if (!(*tree)->driver) {
    static_cast<void>((*tree)->decide(kQcow2Driver));
    BYRE_ASSERT((*tree)->driver == &kQcow2Driver);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(text_of(bytes_at(data, size)));
  look_at(parse_device_name(text));
  const Result<void> object = Objects().add(text);
  BYRE_ASSERT(object || !object.error().message().empty());
  look_at(parse_device_name(cat("json:", text)));
  look_at(parse_device_name("disk", std::nullopt, text));
  look_at(parse_image_opts(text));
  std::vector<std::string> lines;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  look_at(parse_device_list(lines, "top"));
  return 0;
}
