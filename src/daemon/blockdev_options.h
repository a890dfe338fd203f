// SPDX-License-Identifier: Apache-2.0
/// The options of devices as types of a monitor: made of the drivers' own definitions
/// (job/driver.h), so what a driver takes is said once.
///
/// Options with dots are groups here, `cache.direct` is {"cache": {"direct": ...}}; a device below
/// is options in turn, or the name of a node. Invariant: what passes check() has only options that
/// its drivers know, each of its type. Not here: what they mean (job/device_tree.h).
#pragma once

#include "daemon/qmp_type.h"
#include "job/option_tree.h"

namespace byre::qmp {

/// The arguments of blockdev-add, as they came.
struct BlockdevOptions {
  Json options;
};
const Struct& definition_of(const BlockdevOptions*);
template <>
struct Described<BlockdevOptions> {
  static const Type& type() { return definition_of(static_cast<const BlockdevOptions*>(nullptr)); }
  static Result<void> read(const Json& value, const Place& place, BlockdevOptions& to);
};

/// Refuses what no driver takes, in the words of a monitor.
Result<void> check_blockdev(const Json& options, const Place& place);

/// The same options in the other notation.
Result<OptionTree> tree_of_json(const Json& options);
/// Words of a command line as JSON, all of whose values are texts; a text that begins with a brace
/// is JSON already.  `implied`: what the first word without '=' is the value of.
struct Words {
  Json json;
  bool from_words = true;
};
Result<Words> read_words(std::string_view text, std::string_view implied);

}  // namespace byre::qmp
