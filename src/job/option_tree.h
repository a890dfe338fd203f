// SPDX-License-Identifier: Apache-2.0
/// OptionTree: the options of a device as they were written, before anybody knows what they mean.
///
/// Two notations give the same tree: JSON, `{"driver": "qcow2", "file": {"filename": "x"}}` (QEMU's
/// programs take single quotes, too), and lists, `driver=qcow2,file.filename=x`, where `,,` is a
/// comma in a value.  A dot in a key leads one level down in either; elements of JSON arrays are
/// the children "0", "1" and so on.
/// Invariant: at most kTreeDepthMax levels, kTreeOptionsMax options and kTreeTextMax bytes of text;
/// each key is there once; no text has a zero byte.  So whoever walks a tree may recurse.
/// Cost: linear in the text.  The size is looked at before anything is parsed, and the JSON parser
/// (nlohmann's, which keeps its levels on the heap) is stopped at the first level too many.
/// Not here: drivers and types of options (device_tree.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/units.h"

namespace byre {

/// The kernel passes words of 128 KiB at most to a program, and an image has 1023 bytes for the
/// name of its backing file; only a line on stdin could be longer.
inline constexpr uint64_t kTreeTextMax = 1 * MiB;
inline constexpr uint32_t kTreeDepthMax = 100;
/// More than a text of that size needs for any disk, and little memory.
inline constexpr uint32_t kTreeOptionsMax = 65536;

struct OptionTree {
  enum class Kind : uint8_t {
    group,  ///< Has only children.
    text,   ///< `value` is the text.
    number,
    boolean,  ///< "on" or "off".
    null,
  };
  Kind kind = Kind::group;
  bool given = false;  ///< A group that JSON has as an object or array: it cannot come again.
  std::string value;
  std::map<std::string, OptionTree, std::less<>> children;

  bool is_group() const { return kind == Kind::group; }
  const OptionTree* find(std::string_view key) const;
  /// Takes a child out; it is there.
  OptionTree take(std::string_view key);
  /// The options as pairs: "file.driver" and its value.
  std::vector<std::pair<std::string, const OptionTree*>> flattened() const;
};

/// `{...}`
Result<OptionTree> parse_json_options(std::string_view text);
/// `key=value,key.sub=value`
Result<OptionTree> parse_option_list(std::string_view text);
/// A single option; its key may have dots.
Result<void> add_option(OptionTree& tree, std::string_view key, std::string value);

}  // namespace byre
