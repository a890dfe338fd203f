// SPDX-License-Identifier: Apache-2.0
#include "daemon/daemon.h"

#include <algorithm>
#include <utility>

#include "base/option_text.h"
#include "block/gives_up.h"
#include "block/let_through.h"
#include "daemon/blockdev_options.h"
#include "daemon/jobs.h"
#include "daemon/modules.h"
#include "daemon/qmp_stream.h"
#include "io/wall_clock.h"

namespace byre {

using qmp::Json;

struct Daemon::Monitor {
  qmp::Chardev& chardev;
  bool pretty;
  std::unique_ptr<Channel> channel;
  std::unique_ptr<qmp::Session> session;  ///< While there is a client.
};

const qmp::Struct& definition_of(const MonitorOptions*) {
  static const qmp::Struct kStruct(
      {qmp::field("chardev", &MonitorOptions::chardev, "where its clients come from"),
       qmp::with_default("id", &MonitorOptions::id, "its name"),
       qmp::with_default("mode", &MonitorOptions::mode, "control"),
       qmp::with_default("pretty", &MonitorOptions::pretty, "answers over several lines")});
  return kStruct;
}

namespace {

Json version_of(std::string_view text, const std::string& package) {
  uint64_t parts[3] = {};
  for (uint64_t& part : parts) {
    const size_t end = std::min(text.find('.'), text.size());
    part = parse_number(text.substr(0, end), 0, 1000).has_value()
               ? *parse_number(text.substr(0, end), 0, 1000)
               : 0;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {{"qemu", {{"major", parts[0]}, {"minor", parts[1]}, {"micro", parts[2]}}},
          {"package", package}};
}

}  // namespace

Daemon::Daemon(Reactor& reactor, Options options)
    : reactor_(reactor),
      options_(std::move(options)),
      files_(reactor, options_.files, sets_),
      objects_(std::make_shared<Objects>()),
      nodes_(reactor, {.files = files_, .objects = objects_, .message = options_.warn}),
      exports_(
          reactor, nodes_,
          {.deleted = [this](const std::string& id) { emit("BLOCK_EXPORT_DELETED", {{"id", id}}); },
           .report = [this](const Error& error) { options_.warn(error.message()); }}),
      commands_(!options_.as_qemu),
      turn_(reactor.ready()),
      realm_{.daemon = this,
             .commands = commands_,
             .turn = turn_,
             .version = version_of(options_.qemu_version, options_.package)},
      serving_(reactor.ready()),
      asked_to_quit_(reactor.ready()),
      giving_up_(reactor.ready()) {
  qmp::add_all(commands_);
  jobs_ = std::make_unique<DaemonJobs>(*this);
  add_user(*jobs_);
}

Daemon::~Daemon() = default;

Task<void> Daemon::add_chardev(qmp::ChardevOptions options) {
  for (const auto& other : chardevs_) {
    if (other->id() == options.id) {
      co_await fail(invalid("Chardev with id '", options.id, "' already exists"));
    }
  }
  std::unique_ptr<qmp::Chardev> made =
      co_await qmp::Chardev::open(addresses(nullptr), std::move(options));
  qmp::Chardev& chardev = *made;
  chardevs_.push_back(std::move(made));
  if (const std::string where = chardev.waits_for(); !where.empty()) {
    options_.note(cat("waiting for a client on ", where));
    co_await chardev.wait_for_first();
  }
}

Task<void> Daemon::add_monitor(MonitorOptions options) {
  if (options.mode != "control") {
    if (options.mode == "readline") {
      co_await fail(unsupported("mode=readline is not supported: monitors speak QMP"));
    }
    co_await fail(invalid("Parameter 'mode' does not accept value '", options.mode, "'"));
  }
  const auto found = std::ranges::find_if(
      chardevs_, [&](const auto& one) { return one->id() == options.chardev; });
  if (found == chardevs_.end()) {
    co_await fail(invalid("chardev \"", options.chardev, "\" not found"));
  }
  if (std::exchange((*found)->used, true)) {
    co_await fail(invalid("chardev \"", options.chardev, "\" is already in use"));
  }
  monitors_.push_back(std::make_unique<Monitor>(**found, options.pretty, nullptr, nullptr));
}

Task<void> Daemon::serve(Monitor& monitor) {
  for (;;) {
    Result<std::unique_ptr<Channel>> next = co_await monitor.chardev.next().result();
    if (!next) {
      options_.warn(next.error().message());
      co_return;
    }
    if (!*next) co_return;
    monitor.channel = *std::move(next);
    monitor.session = std::make_unique<qmp::Session>(
        reactor_, *monitor.channel, realm_, qmp::Session::Options{.pretty = monitor.pretty});
    Result<void> talked = co_await monitor.session->run().result();
    if (!talked) {
      Error error = std::move(talked).error().while_doing(
          cat("monitor '", monitor.chardev.id(), "' (", monitor.channel->peer(), ")"));
      options_.warn(error.message());
    }
    monitor.session.reset();
    monitor.channel.reset();
  }
}

/// The object, with the real name of its file when that may be opened.
Result<std::string> Daemon::confined(const std::string& text) const {
  if (!options_.root) return text;
  BYRE_TRY(words, qmp::read_words(text, "qom-type"));
  const auto file = words.json.find("file");
  if (file == words.json.end() || !file->is_string()) return text;
  BYRE_TRY(name, options_.root->real_name(qmp::text_in(*file)));
  *file = std::move(name);
  return qmp::text_of_json(words.json);
}

Result<void> Daemon::add_object(const std::string& text) {
  BYRE_TRY(confined_text, confined(text));
  return objects_->add(confined_text, Objects::IoThreads::taken);
}

Json Daemon::describe_chardevs() const {
  Json all = Json::array();
  for (const auto& one : chardevs_) {
    all.push_back({{"label", one->id()}, {"filename", one->place()}, {"frontend-open", one->used}});
  }
  return all;
}

std::vector<std::pair<std::string, std::string>> Daemon::chardev_types() const {
  std::vector<std::pair<std::string, std::string>> all;
  for (const auto& one : chardevs_) all.emplace_back(one->id(), cat("chardev-", one->backend()));
  return all;
}

Result<void> Daemon::remove_object(const std::string& id) { return objects_->remove(id); }

void Daemon::emit(std::string_view event, Json data) {
  const auto known = std::ranges::find(commands_.events(), event, &qmp::EventDefinition::name);
  BYRE_ASSERT(known != commands_.events().end());
  const WallTime now = wall_time();
  const Json message = {
      {"event", event},
      {"data", std::move(data)},
      {"timestamp", {{"seconds", now.seconds}, {"microseconds", now.nanoseconds / 1000}}}};
  for (const auto& monitor : monitors_) {
    if (monitor->session) monitor->session->send_event(message);
  }
}

Task<void> Daemon::run() {
  // Not before: who is greeted finds all that the command line asked for.
  for (const auto& monitor : monitors_) serving_.spawn(serve(*monitor));
  while (!quitting_) co_await asked_to_quit_.wait();
}

void Daemon::quit() {
  quitting_ = true;
  for (const auto& chardev : chardevs_) chardev->stop();
  asked_to_quit_.notify();
}

/// So long may what is under way take when the daemon ends.
constexpr int64_t kGiveUpAfter = 5 * kSecond;

/// Again and again: a command that waited may begin another request.
Task<void> Daemon::give_up_later() {
  while (true) {
    give_up_timer_ = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + kGiveUpAfter};
    co_await reactor_.perform(give_up_timer_);
    if (ended_) co_return;
    for (Node* node : nodes_.graph()) give_up_requests(node->device());
  }
}

void Daemon::expect_end() {
  if (!std::exchange(end_expected_, true)) giving_up_.spawn(give_up_later());
}

Task<void> Daemon::end() {
  quitting_ = true;
  Result<void> closed;
  expect_end();
  {
    LetThrough unthrottled;
    for (const Node* node : nodes_.graph()) unthrottled.add(node->device());
    const auto turn = co_await turn_.lock();
    realm_.ending = true;
    if (exports_.is_running()) (void)co_await exports_.stop().result();
    for (NodeUser* user : users_) (void)co_await user->end().result();
    closed = co_await nodes_.close_all().result();
  }
  ended_ = true;
  reactor_.cancel(give_up_timer_);
  co_await giving_up_.join();
  for (const auto& chardev : chardevs_) chardev->stop();
  for (const auto& monitor : monitors_) {
    if (monitor->session) monitor->session->stop();
  }
  (void)co_await serving_.join().result();
  monitors_.clear();
  chardevs_.clear();
  co_await std::move(closed);
}

}  // namespace byre
