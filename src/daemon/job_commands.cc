// SPDX-License-Identifier: Apache-2.0
/// Commands that steer jobs, whatever they do, and show them.  Those that start one are in
/// job_start_commands.cc.
#include <utility>

#include "daemon/jobs.h"
#include "daemon/modules.h"
#include "job/live/mirror.h"

namespace byre::qmp {

namespace {

Error no_job(Call& call, const std::string& id, bool wants_block_job) {
  if (!wants_block_job) return Error(Errc::not_found, "Job not found");
  call.failure_class = "DeviceNotActive";
  return Error(Errc::not_found, cat("Block job '", id, "' not found"));
}

Result<Job*> need_job(Call& call, const std::string& id, bool wants_block_job) {
  Job* const job = call.daemon().jobs().list().find(id);
  if (!job || (wants_block_job && !is_block_job(*job))) return no_job(call, id, wants_block_job);
  return job;
}

// --- What takes nothing but the job --------------------------------------------------------------

/// By `id` (job-*) or `device` (block-job-*).
struct ById {
  std::string id;
};
const Struct& definition_of(const ById*) {
  static const Struct kStruct({field("id", &ById::id, "which job")});
  return kStruct;
}
struct ByDevice {
  std::string device;
};
const Struct& definition_of(const ByDevice*) {
  static const Struct kStruct({field("device", &ByDevice::device, "which job")});
  return kStruct;
}

template <Result<void> (Job::*Verb)()>
Task<Json> steer(Call& call, ById args) {
  Job* const job = co_await need_job(call, args.id, false);
  co_await (job->*Verb)();
  co_return Json();
}
template <Result<void> (Job::*Verb)()>
Task<Json> steer_block_job(Call& call, ByDevice args) {
  Job* const job = co_await need_job(call, args.device, true);
  co_await (job->*Verb)();
  co_return Json();
}
template <Result<void> (Job::*Verb)()>
Task<Json> steer_block_job_by_id(Call& call, ById args) {
  Job* const job = co_await need_job(call, args.id, true);
  co_await (job->*Verb)();
  co_return Json();
}

const Command<ById> kPause({.name = "job-pause",
                            .help = "holds a job: what it does ends, and nothing new begins",
                            .run = steer<&Job::pause>,
                            .at_once = true});
const Command<ById> kResume({.name = "job-resume",
                             .help = "lets a job go on",
                             .run = steer<&Job::resume>,
                             .at_once = true});
const Command<ById> kComplete({.name = "job-complete",
                               .help = "ends a job that is ready, and leads users to its target",
                               .run = steer<&Job::complete>});
const Command<ById> kFinalize({.name = "job-finalize",
                               .help = "ends a job that is pending, with its transaction",
                               .run = steer<&Job::finalize>});
const Command<ById> kDismiss({.name = "job-dismiss",
                              .help = "forgets a job that is concluded",
                              .run = steer<&Job::dismiss>});
const Command<ByDevice> kBlockPause({.name = "block-job-pause",
                                     .help = "as job-pause",
                                     .run = steer_block_job<&Job::pause>,
                                     .at_once = true});
const Command<ByDevice> kBlockResume({.name = "block-job-resume",
                                      .help = "as job-resume",
                                      .run = steer_block_job<&Job::resume>,
                                      .at_once = true});
const Command<ByDevice> kBlockComplete({.name = "block-job-complete",
                                        .help = "as job-complete",
                                        .run = steer_block_job<&Job::complete>});
const Command<ById> kBlockFinalize({.name = "block-job-finalize",
                                    .help = "as job-finalize",
                                    .run = steer_block_job_by_id<&Job::finalize>});
const Command<ById> kBlockDismiss({.name = "block-job-dismiss",
                                   .help = "as job-dismiss",
                                   .run = steer_block_job_by_id<&Job::dismiss>});

// --- Cancel, speed, mode -------------------------------------------------------------------------

Task<Json> job_cancel(Call& call, ById args) {
  Job* const job = co_await need_job(call, args.id, false);
  co_await job->cancel(true);
  co_return Json();
}
const Command<ById> kCancel({.name = "job-cancel",
                             .help = "ends a job; its disks stay as they are, and sound",
                             .run = job_cancel,
                             .at_once = true});

struct BlockCancel {
  std::string device;
  bool force = false;
};
const Struct& definition_of(const BlockCancel*) {
  static const Struct kStruct(
      {field("device", &BlockCancel::device, "which job"),
       with_default("force", &BlockCancel::force,
                    "also when it is paused; a mirror that is ready is not completed")});
  return kStruct;
}
Task<Json> block_job_cancel(Call& call, BlockCancel args) {
  Job* const job = co_await need_job(call, args.device, true);
  if (job->is_paused() && !args.force) {
    co_return invalid("The block job for device '", args.device, "' is currently paused");
  }
  co_await job->cancel(args.force);
  co_return Json();
}
const Command<BlockCancel> kBlockCancel(
    {.name = "block-job-cancel",
     .help = "ends a job; without force, a mirror that is ready leaves a complete copy",
     .run = block_job_cancel,
     .at_once = true});

struct SetSpeed {
  std::string device;
  int64_t speed = 0;
};
const Struct& definition_of(const SetSpeed*) {
  static const Struct kStruct(
      {field("device", &SetSpeed::device, "which job"),
       field("speed", &SetSpeed::speed, "bytes a second, or 0 for no limit")});
  return kStruct;
}
Task<Json> block_job_set_speed(Call& call, SetSpeed args) {
  Job* const job = co_await need_job(call, args.device, true);
  if (args.speed < 0) co_return invalid("Parameter 'speed' expects a non-negative value");
  co_await job->set_speed(static_cast<uint64_t>(args.speed));
  co_return Json();
}
const Command<SetSpeed> kSetSpeed({.name = "block-job-set-speed",
                                   .help = "how much a job may copy a second",
                                   .run = block_job_set_speed});

enum class ChangeType : uint8_t { mirror };
const Enumeration& definition_of(const ChangeType*) {
  static const Enumeration kTypes({"mirror"});
  return kTypes;
}
enum class CopyMode : uint8_t { background, write_blocking };
const Enumeration& definition_of(const CopyMode*) {
  static const Enumeration kModes({"background", "write-blocking"});
  return kModes;
}
struct Change {
  std::string id;
  ChangeType type = ChangeType::mirror;
  CopyMode mode = CopyMode::background;
};
const Struct& definition_of(const Change*) {
  static const Struct kStruct(
      {field("id", &Change::id, "which job"), field("type", &Change::type, "of which kind"),
       field("copy-mode", &Change::mode, "write-blocking: guests write to both from now on")});
  return kStruct;
}
Task<Json> block_job_change(Call& call, Change args) {
  Job* const job = co_await need_job(call, args.id, true);
  using enum JobStatus;
  auto* const mirror = dynamic_cast<Mirror*>(&job->work());
  if (!mirror || job->kind() != JobKind::mirror) {
    co_return invalid("Job type does not support change");
  }
  co_await job->check("change", {created, running, paused, ready, standby});
  co_await mirror->set_mode(args.mode == CopyMode::background ? MirrorMode::background
                                                              : MirrorMode::write_blocking);
  co_return Json();
}
const Command<Change> kChange({.name = "block-job-change",
                               .help = "changes how a mirror copies, while it runs",
                               .run = block_job_change});

// --- What there is -------------------------------------------------------------------------------

std::vector<Field> job_fields() {
  return {result_field<std::string>("id", "its name"),
          result_field<std::string>("type", "its kind"),
          result_field<std::string>("status", "its state"),
          result_field<int64_t>("current-progress", "how much is done"),
          result_field<int64_t>("total-progress", "of how much"),
          result_field<std::string>("error", "why it failed", true)};
}
const Type& list_of_jobs() {
  static const Struct kJob(job_fields());
  static const Array kList(kJob);
  return kList;
}
/// With what QEMU does not have.
const Type& own_list_of_jobs() {
  static const Struct kJob = [] {
    std::vector<Field> fields = job_fields();
    fields.push_back(
        result_field<bool>("x-byre-overtaken", "true: guests write faster than it copies", true));
    fields.push_back(result_field<bool>(
        "x-byre-went-write-blocking",
        "true: because of that guests write to both disks, as x-byre-converge has it", true));
    fields.push_back(result_field<bool>("x-byre-completing",
                                        "true: it is ready and was asked to complete", true));
    fields.push_back(result_field<int64_t>(
        "x-byre-verified",
        "with x-byre-verify: bytes that were read back and are what the target was given", true));
    return Struct(std::move(fields));
  }();
  static const Array kList(kJob);
  return kList;
}
Task<Json> query_jobs(Call& call, Nothing) {
  Json list = Json::array();
  for (const Job* job : call.daemon().jobs().list().jobs()) {
    Json one = {{"current-progress", job->progress().done()},
                {"status", name_of(job->status())},
                {"total-progress", job->progress().total()},
                {"type", name_of(job->kind())},
                {"id", job->id()}};
    if (job->error()) one["error"] = job->error().message();
    const auto* const mirror = dynamic_cast<const Mirror*>(&job->work());
    const auto verified = job->work().verified();
    const bool own = call.daemon().commands().has_own();
    if (verified && own) one["x-byre-verified"] = *verified;
    if (own && job->is_ready() && job->shall_complete()) one["x-byre-completing"] = true;
    if (mirror && own) {
      if (mirror->is_overtaken()) one["x-byre-overtaken"] = true;
      if (mirror->has_gone_blocking()) one["x-byre-went-write-blocking"] = true;
    }
    list.push_back(std::move(one));
  }
  co_return std::move(list);
}
const Command<> kQueryJobs({.name = "query-jobs",
                            .help = "the jobs there are",
                            .result = &list_of_jobs(),
                            .run = query_jobs,
                            .at_once = true});
const Command<> kOwnQueryJobs({.name = "query-jobs",
                               .help = "the jobs there are",
                               .result = &own_list_of_jobs(),
                               .run = query_jobs,
                               .at_once = true});

std::string_view name_of_status(JobIoStatus status) {
  return status == JobIoStatus::ok ? "ok" : status == JobIoStatus::no_space ? "nospace" : "failed";
}

Json describe(const Job& job) {
  Json one = {{"auto-finalize", job.options().auto_finalize},
              {"io-status", name_of_status(job.io_status())},
              {"device", job.id()},
              {"auto-dismiss", job.options().auto_dismiss},
              {"busy", job.is_busy()},
              {"len", job.progress().total()},
              {"offset", job.progress().done()},
              {"status", name_of(job.status())},
              {"paused", job.is_paused()},
              {"speed", job.speed()},
              {"ready", job.status() == JobStatus::ready || job.status() == JobStatus::standby},
              {"type", name_of(job.kind())}};
  if (const auto* mirror = dynamic_cast<const Mirror*>(&job.work());
      mirror && job.kind() == JobKind::mirror) {
    one["actively-synced"] = mirror->is_in_sync_actively();
  }
  if (job.error()) one["error"] = job.error().message();
  return one;
}

const Type& list_of_block_jobs() {
  static const Struct kJob(
      {result_field<std::string>("type", "its kind"),
       result_field<std::string>("device", "its name"),
       result_field<int64_t>("len", "how much there is to do"),
       result_field<int64_t>("offset", "how much of that is done"),
       result_field<bool>("busy", "a request of it is under way"),
       result_field<bool>("paused", "somebody holds it"),
       result_field<int64_t>("speed", "bytes a second, or 0 for no limit"),
       result_field<std::string>("io-status", "ok, failed, nospace"),
       result_field<bool>("ready", "it can be completed"),
       result_field<std::string>("status", "its state"),
       result_field<bool>("auto-finalize", "nobody need finalize it"),
       result_field<bool>("auto-dismiss", "nobody need dismiss it"),
       result_field<bool>("actively-synced", "of a mirror: both get what guests write", true),
       result_field<std::string>("error", "why it failed", true)});
  static const Array kList(kJob);
  return kList;
}
Task<Json> query_block_jobs(Call& call, Nothing) {
  Json list = Json::array();
  for (const Job* job : call.daemon().jobs().list().jobs()) {
    if (is_block_job(*job)) list.push_back(describe(*job));
  }
  co_return std::move(list);
}
const Command<> kQueryBlockJobs({.name = "query-block-jobs",
                                 .help = "the jobs there are, with more of each",
                                 .result = &list_of_block_jobs(),
                                 .run = query_block_jobs,
                                 .at_once = true});

// --- Events --------------------------------------------------------------------------------------

std::vector<Field> facts() {
  return {result_field<std::string>("type", "its kind"),
          result_field<std::string>("device", "its name"),
          result_field<int64_t>("len", "how much there was to do"),
          result_field<int64_t>("offset", "how much of that is done"),
          result_field<int64_t>("speed", "bytes a second, or 0 for no limit")};
}
std::vector<Field> facts_with_error() {
  std::vector<Field> fields = facts();
  fields.push_back(result_field<std::string>("error", "why it failed", true));
  return fields;
}
const EventDefinition kStatusChange{
    .name = "JOB_STATUS_CHANGE",
    .help = "a job has another state",
    .data = Struct({result_field<std::string>("id", "which"),
                    result_field<std::string>("status", "its state now")})};
const EventDefinition kReady{
    .name = "BLOCK_JOB_READY", .help = "a job can be completed", .data = Struct(facts())};
const EventDefinition kPending{.name = "BLOCK_JOB_PENDING",
                               .help = "a job waits for job-finalize",
                               .data = Struct({result_field<std::string>("type", "its kind"),
                                               result_field<std::string>("id", "which")})};
const EventDefinition kCompleted{.name = "BLOCK_JOB_COMPLETED",
                                 .help = "a job has ended, well or with an error",
                                 .data = Struct(facts_with_error())};
const EventDefinition kCancelled{
    .name = "BLOCK_JOB_CANCELLED", .help = "a job was cancelled", .data = Struct(facts())};
const EventDefinition kError{
    .name = "BLOCK_JOB_ERROR",
    .help = "a request of a job has failed",
    .data = Struct({result_field<std::string>("device", "which job"),
                    result_field<std::string>("operation", "read or write"),
                    result_field<std::string>("action", "report, ignore or stop")})};

}  // namespace

void add_job_commands(CommandSet& set) {
  for (const AnyCommand* command : std::initializer_list<const AnyCommand*>{
           &kPause, &kResume, &kCancel, &kComplete, &kFinalize, &kDismiss, &kBlockPause,
           &kBlockResume, &kBlockCancel, &kBlockComplete, &kBlockFinalize, &kBlockDismiss,
           &kSetSpeed, &kChange, set.has_own() ? &kOwnQueryJobs : &kQueryJobs, &kQueryBlockJobs}) {
    set.add(*command);
  }
  for (const EventDefinition* event :
       {&kStatusChange, &kReady, &kPending, &kCompleted, &kCancelled, &kError}) {
    set.add(*event);
  }
}

}  // namespace byre::qmp
