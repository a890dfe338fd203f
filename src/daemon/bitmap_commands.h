// SPDX-License-Identifier: Apache-2.0
/// Arguments of the commands for bitmaps, which are actions of transactions as well, and what each
/// does with how it is undone.
///
/// Undoing puts back the bits that were there: so nobody may write meanwhile (HoldClients).
/// Not here: bitmaps (bitmaps.h).
#pragma once

#include "daemon/export_commands.h"
#include "daemon/qmp_command.h"

namespace byre::qmp {

struct BitmapName {
  std::string node;
  std::string name;
};
const Struct& definition_of(const BitmapName*);

struct BitmapAdd {
  std::string node;
  std::string name;
  std::optional<uint32_t> granularity;
  bool persistent = false;
  bool disabled = false;
};
const Struct& definition_of(const BitmapAdd*);

struct BitmapMerge {
  std::string node;
  std::string target;
  std::vector<BitmapOfExport> bitmaps;
};
const Struct& definition_of(const BitmapMerge*);

enum class BitmapChange : uint8_t { remove, clear, enable, disable };

std::unique_ptr<ActionRun> adding(Call& call, BitmapAdd args);
std::unique_ptr<ActionRun> merging(Call& call, BitmapMerge args);
std::unique_ptr<ActionRun> changing(Call& call, BitmapChange change, BitmapName args);

}  // namespace byre::qmp
