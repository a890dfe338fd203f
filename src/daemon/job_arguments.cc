// SPDX-License-Identifier: Apache-2.0
#include "daemon/job_arguments.h"

#include <utility>

namespace byre::qmp {

namespace {

/// "auto" is what a disk does by itself: reads report, writes stop when the disk is full.
OnError on_error_of(OnErrorWord word, JobSide side) {
  if (word != OnErrorWord::automatic) return static_cast<OnError>(word);
  return side == JobSide::source ? OnError::report : OnError::enospc;
}

}  // namespace

const std::string_view kVerifyHelp =
    "true: the target is read back, past the page cache, and compared with what it was given, "
    "before "
    "the job ends well or leads anybody there; not with the sync mode 'none'";

const Enumeration& definition_of(const OnErrorWord*) {
  static const Enumeration kWords({"report", "ignore", "enospc", "stop", "auto"});
  return kWords;
}

const Enumeration& definition_of(const SyncWord*) {
  static const Enumeration kWords({"top", "full", "none", "incremental", "bitmap"});
  return kWords;
}

std::vector<Field> with_job_fields(std::vector<Field> fields) {
  fields.push_back(field("job-id", &JobArgs::id, "its name"));
  fields.push_back(with_default("speed", &JobArgs::speed, "bytes a second; 0: no limit"));
  fields.push_back(with_default("auto-finalize", &JobArgs::auto_finalize,
                                "it ends by itself; else it waits for job-finalize"));
  fields.push_back(with_default("auto-dismiss", &JobArgs::auto_dismiss,
                                "it goes by itself; else its result stays until job-dismiss"));
  fields.push_back(field("filter-node-name", &JobArgs::filter_name, "of the job's own node"));
  return fields;
}

Result<JobOptions> options_of(const JobArgs& args, OnErrorWord source, OnErrorWord target) {
  if (args.speed < 0) return invalid("Parameter 'speed' expects a non-negative value");
  return JobOptions{.id = args.id.value_or(""),
                    .auto_finalize = args.auto_finalize,
                    .auto_dismiss = args.auto_dismiss,
                    .speed = static_cast<uint64_t>(args.speed),
                    .on_source_error = on_error_of(source, JobSide::source),
                    .on_target_error = on_error_of(target, JobSide::target),
                    .gives_way = true};
}

Result<std::string> filter_name_of(Call& call, const JobArgs& args) {
  if (!args.filter_name) return std::string();
  Result<void> free = call.daemon().nodes().check_new_name(*args.filter_name);
  if (!free) return std::move(free).error();
  return *args.filter_name;
}

Result<std::string> new_filter_name_of(Call& call, const JobArgs& args) {
  Result<std::string> name = filter_name_of(call, args);
  if (!name) return std::move(name).error().while_doing("Could not create node");
  return name;
}

Result<NamedNode*> node_of(Call& call, const std::string& name) {
  return call.daemon().nodes().need(name, name);
}

}  // namespace byre::qmp
