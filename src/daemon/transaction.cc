// SPDX-License-Identifier: Apache-2.0
/// `transaction`: several actions, all or none.
///
///   1. All are read, and refused if one of them cannot be.
///   2. Clients of exports wait outside; requests that run end.
///   3. Each acts in turn; when one fails, those before it are undone, the last one first.
///   4. Clients go on.
/// So for the process all happen at one point in time or not at all.  After a power loss each image
/// is sound by itself: some may have changed and others not.
/// Not here: what actions do (bitmap_commands.cc, and others that are registered).
#include <memory>
#include <utility>
#include <vector>

#include "daemon/daemon.h"
#include "daemon/jobs.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

struct Abort {};
const Struct& definition_of(const Abort*) {
  return definition_of(static_cast<const Nothing*>(nullptr));
}

class Aborting final : public ActionRun {
 public:
  Task<void> act() override { co_await fail(invalid("Transaction aborted using Abort action")); }
  Task<void> undo() override { co_return; }
};
std::unique_ptr<ActionRun> aborting(Call&, Abort) { return std::make_unique<Aborting>(); }
const Action<Abort> kAbort("abort", aborting);

/// The arguments: what an action is depends on which there are.
class Transaction final : public AnyCommand {
 public:
  explicit Transaction(const CommandSet& set) : set_(set) {
    name = "transaction";
    help = "does several actions, all or none";
    std::vector<std::string> names;
    std::vector<Variant> variants;
    for (const AnyAction* action : set.actions()) {
      names.emplace_back(action->name);
      variants.push_back(
          {.value = std::string(action->name),
           .fields = {{.name = "data", .help = "its arguments", .known = action->arguments}}});
    }
    types_ = std::make_unique<Enumeration>(std::move(names));
    action_ = std::make_unique<Struct>(
        std::vector<Field>{{.name = "type", .help = "what is done", .known = types_.get()}}, "type",
        std::move(variants));
    list_ = std::make_unique<Array>(*action_);
    modes_ = std::make_unique<Enumeration>(std::vector<std::string>{"individual", "grouped"});
    properties_ = std::make_unique<Struct>(
        std::vector<Field>{{.name = "completion-mode",
                            .help = "grouped: jobs that it starts succeed or fail together",
                            .optional = true,
                            .known = modes_.get()}});
    all_ = std::make_unique<Struct>(std::vector<Field>{
        {.name = "actions", .help = "in this order", .known = list_.get()},
        {.name = "properties", .help = "how", .optional = true, .known = properties_.get()}});
    arguments = all_.get();
  }

  Task<Json> run(Call& call, const Json& given) const override {
    co_await arguments->check(given, {});
    std::vector<std::unique_ptr<ActionRun>> actions;
    for (const Json& one : given["actions"]) {
      const AnyAction* const action = set_.find_action(text_in(one["type"]));
      std::unique_ptr<ActionRun> run = co_await action->start(call, one["data"]);
      actions.push_back(std::move(run));
    }
    const auto properties = given.find("properties");
    if (properties != given.end() && properties->value("completion-mode", "") == "grouped") {
      call.jobs = call.daemon().jobs().list().begin_transaction();
    }
    HoldClients hold(call.daemon().exports());
    co_await hold.begin();
    co_await run_all(actions);
    co_return Json();
  }

 private:
  static Task<void> run_all(std::vector<std::unique_ptr<ActionRun>>& actions) {
    for (const auto& action : actions) co_await action->prepare();
    for (size_t i = 0; i < actions.size(); ++i) {
      Result<void> done = co_await actions[i]->act().result();
      if (done) continue;
      std::string lost;
      while (i-- > 0) {
        const Result<void> undone = co_await actions[i]->undo().result();
        if (!undone) lost += cat("; and an action could not be undone: ", undone.error().message());
      }
      if (lost.empty()) co_await std::move(done);
      co_await fail(Error(done.error().code(), done.error().message() + lost));
    }
    for (const auto& action : actions) co_await action->finish();
  }

  const CommandSet& set_;
  std::unique_ptr<Enumeration> types_, modes_;
  std::unique_ptr<Struct> action_, properties_, all_;
  std::unique_ptr<Array> list_;
};

}  // namespace

void add_transaction(CommandSet& set) {
  set.add(kAbort);
  set.own(std::make_unique<Transaction>(set));
}

}  // namespace byre::qmp
