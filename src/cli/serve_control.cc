// SPDX-License-Identifier: Apache-2.0
#include "cli/serve_control.h"

#include <algorithm>
#include <utility>

#include "cli/session.h"
#include "daemon/jobs.h"

namespace byre {

namespace {

/// Room for a number behind it.
constexpr size_t kNameMax = 24;

bool can_name_a_node(std::string_view name) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  if (name.empty() || name.size() > kNameMax || !is_letter(name.front())) return false;
  return std::ranges::all_of(name, [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

}  // namespace

Result<void> check_control(const ServePlan& plan) {
  if (!plan.control) return {};
  constexpr std::string_view kWhy =
      ": jobs need a disk that this server alone has open, and writes; leave one of the two out";
  if (plan.read_only) return unsupported("--control does not go with --read-only", kWhy);
  if (plan.snapshot) return unsupported("--control does not go with --snapshot", kWhy);
  if (plan.open.share) return unsupported("--control does not go with --force-share", kWhy);
  if (plan.control->empty()) return invalid("--control: name a unix socket");
  return {};
}

ServeControl::ServeControl(Session& session, FileOpener& opener, const ServePlan& plan)
    : session_(session),
      plan_(plan),
      name_(can_name_a_node(plan.export_name) ? plan.export_name : "disk"),
      io_(session.reactor(), opener),
      daemon_(session.reactor(),
              {.files = opener,
               .qemu_version = std::string(kLikeQemu),
               .package = cat("byre ", BYRE_VERSION),
               .note = [&session](const std::string& text) { session.note(cat(text, "\n")); },
               .warn = [&session](const std::string& text) { session.warn(text); },
               .io = &io_}) {
  daemon_.add_user(*this);
}

void ServeControl::adopt(Disk& disk) { daemon_.nodes().adopt(disk, name_, is_direct(plan_.cache)); }

Task<std::vector<nbd::ExportContext>> ServeControl::contexts() {
  std::vector<nbd::ExportContext> contexts;
  NamedNode* const node = co_await daemon_.nodes().need(name_);
  for (const std::string& bitmap : plan_.bitmaps) {
    contexts.push_back(co_await use_bitmap(*node, bitmap));
  }
  co_return contexts;
}

Task<void> ServeControl::open(nbd::ServerRun& run) {
  NewExport said{.id = name_,
                 .node_name = name_,
                 .name = plan_.export_name,
                 .description = plan_.description,
                 .writable = run.disk().writable(),
                 .depth = plan_.depth};
  for (const std::string& bitmap : plan_.bitmaps) said.bitmaps.emplace_back(std::nullopt, bitmap);
  daemon_.exports().adopt(std::move(said), run.entrance(), run.counts());
  qmp::ChardevOptions chardev;
  chardev.id = "control";
  chardev.path = *plan_.control;
  chardev.server = true;
  chardev.wait = false;
  co_await daemon_.add_chardev(std::move(chardev)).doing("--control");
  co_await daemon_.add_monitor({.chardev = "control"});
}

Task<void> ServeControl::run() { co_await daemon_.run(); }

void ServeControl::stop() {
  daemon_.expect_end();
  daemon_.quit();
}

/// Nobody should find out later.
void ServeControl::tell_cut_jobs() {
  for (const Job* job : daemon_.jobs().list().jobs()) {
    if (job->status() >= JobStatus::concluded) continue;
    session_.warn(cat("job ", byre::quoted(job->id()), " is cancelled, because this server ends"));
  }
}

Task<void> ServeControl::end() {
  daemon_.exports().let_go(name_);
  ended_ = co_await run_->end().result();
}

Task<void> ServeControl::end(nbd::ServerRun& run) {
  run_ = &run;
  tell_cut_jobs();
  Result<void> closed = co_await daemon_.end().result();
  co_await std::move(ended_);
  co_await std::move(closed);
}

std::string ServeControl::waiting_for(const nbd::ServerRun& run) {
  const size_t jobs = daemon_.jobs().list().jobs().size();
  return cat(run.waiting_for(), jobs == 0 ? "" : cat(", ", jobs, " job", jobs == 1 ? "" : "s"));
}

}  // namespace byre
