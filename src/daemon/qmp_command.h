// SPDX-License-Identifier: Apache-2.0
/// Command: the one definition of what a client can ask for.
///
///     Task<Json> blockdev_del(Call& call, BlockdevDel args);
///     const Command<BlockdevDel> kBlockdevDel({.name = "blockdev-del", .help = "...",
///                                              .run = blockdev_del});
///
/// The arguments are what the struct's description says (qmp_type.h).  It parses and refuses them,
/// query-qmp-schema and query-commands are made of it, and so is the help.  As cli/command.h does
/// for words.
/// A module of commands is a function that adds them, with its events and actions of transactions,
/// to a CommandSet (modules.h): so jobs bring theirs.
/// Not here: how commands come in (qmp_session.h).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coro/task.h"
#include "daemon/qmp_type.h"

namespace byre {
class Daemon;
class JobTransaction;
}  // namespace byre

namespace byre::qmp {

class Descriptors;

/// One request: whose it is, and how it fails.
struct Call {
  Daemon* owner = nullptr;   ///< Null in tests of what needs none.
  Descriptors& descriptors;  ///< Of the monitor that it came by.
  /// The class of the error, should it fail: "DeviceNotActive" and the like.
  std::string_view failure_class = "GenericError";
  /// Jobs that it starts end together; null: each by itself.
  std::shared_ptr<JobTransaction> jobs = {};

  Daemon& daemon() const {
    BYRE_ASSERT(owner);
    return *owner;
  }
};

class AnyCommand {
 public:
  std::string_view name;
  std::string_view help;
  const Type* result = nullptr;  ///< Null: nothing but success.
  const Struct* arguments = nullptr;
  /// It waits for nothing, and what it does may come between the steps of another: so it runs
  /// although another monitor's command waits for a disk that does not answer.
  bool at_once = false;

  virtual ~AnyCommand() = default;
  virtual Task<Json> run(Call& call, const Json& arguments) const = 0;

 protected:
  AnyCommand() = default;
};

/// A command without arguments.
struct Nothing {};
const Struct& definition_of(const Nothing*);

template <class Args = Nothing>
class Command final : public AnyCommand {
 public:
  struct Definition {
    std::string_view name;
    std::string_view help;
    const Type* result = nullptr;
    Task<Json> (*run)(Call& call, Args args);
    bool at_once = false;  ///< As in AnyCommand.
  };
  explicit Command(Definition definition) : run_(definition.run) {
    name = definition.name;
    help = definition.help;
    result = definition.result;
    at_once = definition.at_once;
    arguments = &definition_of(static_cast<const Args*>(nullptr));
  }
  Task<Json> run(Call& call, const Json& given) const override {
    Args args;
    co_await arguments->read(given, {}, &args);
    co_return co_await run_(call, std::move(args));
  }

 private:
  Task<Json> (*run_)(Call& call, Args args);
};

struct EventDefinition {
  std::string_view name;
  std::string_view help;
  Struct data;
};

/// One part of a transaction (transaction.h), under way: all parts are prepared before the first is
/// done, and when one fails, those that are done are undone, the last one first.
class ActionRun {
 public:
  virtual ~ActionRun() = default;
  /// Refuses what cannot be done; changes nothing.
  virtual Task<void> prepare() { co_return; }
  virtual Task<void> act() = 0;
  /// Nothing is as if act() had not been.  It cannot be refused.
  virtual Task<void> undo() = 0;
  /// All have acted.
  virtual Task<void> finish() { co_return; }
};

class AnyAction {
 public:
  std::string_view name;
  const Struct* arguments = nullptr;
  virtual ~AnyAction() = default;
  virtual Result<std::unique_ptr<ActionRun>> start(Call& call, const Json& data) const = 0;
};

template <class Args>
class Action final : public AnyAction {
 public:
  using Make = std::unique_ptr<ActionRun> (*)(Call& call, Args args);
  Action(std::string_view n, Make make) : make_(make) {
    name = n;
    arguments = &definition_of(static_cast<const Args*>(nullptr));
  }
  Result<std::unique_ptr<ActionRun>> start(Call& call, const Json& data) const override {
    Args args;
    if (Result<void> read = arguments->read(data, {}, &args); !read) return std::move(read).error();
    return make_(call, std::move(args));
  }

 private:
  Make make_;
};

/// All that clients can ask for, and hear of.
class CommandSet {
 public:
  CommandSet() = default;
  /// `has_own`: with arguments and members that QEMU does not have; their names begin with x-byre-.
  explicit CommandSet(bool has_own) : has_own_(has_own) {}
  bool has_own() const { return has_own_; }
  void add(const AnyCommand& command) { commands_.push_back(&command); }
  /// One that depends on what else is in the set; comes last.
  void own(std::unique_ptr<const AnyCommand> command) {
    commands_.push_back(command.get());
    owned_.push_back(std::move(command));
  }
  void add(const EventDefinition& event) { events_.push_back(&event); }
  void add(const AnyAction& action) { actions_.push_back(&action); }
  /// Null: there is none.
  const AnyCommand* find(std::string_view name) const;
  const AnyAction* find_action(std::string_view name) const;
  std::span<const AnyCommand* const> commands() const { return commands_; }
  std::span<const EventDefinition* const> events() const { return events_; }
  std::span<const AnyAction* const> actions() const { return actions_; }

 private:
  std::vector<const AnyCommand*> commands_;
  std::vector<std::unique_ptr<const AnyCommand>> owned_;
  std::vector<const EventDefinition*> events_;
  std::vector<const AnyAction*> actions_;
  bool has_own_ = false;
};

/// What query-qmp-schema answers.
Json schema_of(const CommandSet& set);
/// What `byre daemon --help` lists: a line for each command with its arguments.
std::string describe_commands(const CommandSet& set);

}  // namespace byre::qmp
