// SPDX-License-Identifier: Apache-2.0
/// What commands that start block jobs take alike.
/// Not here: the commands (job_start_commands.cc, backup_command.cc), jobs (jobs.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/daemon.h"
#include "daemon/qmp_command.h"
#include "job/live/job.h"

namespace byre::qmp {

enum class OnErrorWord : uint8_t { report, ignore, enospc, stop, automatic };
const Enumeration& definition_of(const OnErrorWord*);

enum class SyncWord : uint8_t { top, full, none, incremental, bitmap };
const Enumeration& definition_of(const SyncWord*);

/// What "x-byre-verify" means.
extern const std::string_view kVerifyHelp;

struct JobArgs {
  std::optional<std::string> id;
  int64_t speed = 0;
  bool auto_finalize = true;
  bool auto_dismiss = true;
  std::optional<std::string> filter_name;
};

/// Fields of a struct that derives from JobArgs, and what is common to all jobs.
std::vector<Field> with_job_fields(std::vector<Field> fields);

Result<JobOptions> options_of(const JobArgs& args, OnErrorWord source, OnErrorWord target);

/// What the filter is to be called.
Result<std::string> filter_name_of(Call& call, const JobArgs& args);
/// Of filters that QEMU makes as blockdev-add does, and says so.
Result<std::string> new_filter_name_of(Call& call, const JobArgs& args);

Result<NamedNode*> node_of(Call& call, const std::string& name);

}  // namespace byre::qmp
