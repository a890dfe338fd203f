// SPDX-License-Identifier: Apache-2.0
#include "cli/serve_plan.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

#include "cli/json.h"
#include "cli/kernel_client.h"
#include "cli/serve_control.h"
#include "cli/serve_reporter.h"
#include "cli/served_disk.h"
#include "cli/text.h"
#include "daemon/metrics_page.h"
#include "daemon/metrics_server.h"
#include "export/background.h"
#include "export/nbd_server_run.h"
#include "io/nbd_device.h"
#include "io/service_manager.h"

namespace byre {

namespace {

/// In single quotes, for a shell, when it needs any.
std::string shell_quoted(const std::string& text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return isalnum(c) ||
           std::string_view("-._/:=+@%,").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return text;
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string attach_lines(const std::vector<nbd::Uri>& addresses, const std::string& export_name) {
  std::string out;
  if (addresses.empty()) return out;
  for (const nbd::Uri& address : addresses) out += address.text() + "\n";
  const nbd::Uri& first = addresses[0];
  const std::string uri = shell_quoted(first.text());
  const std::string client =
      first.socket ? cat("-unix ", shell_quoted(*first.socket)) : cat(first.host, " ", first.port);
  const std::string name = export_name.empty() ? "" : cat(" -N ", shell_quoted(export_name));
  out += cat("  copy it    nbdcopy ", uri, " copy.raw\n",
             "  boot it    qemu-system-x86_64 -m 2G -drive ",
             shell_quoted(cat("format=raw,if=virtio,file=", first.text())), "\n",
             "  attach it  nbd-client ", client, name, " /dev/nbd0\n");
  return out;
}

std::string curl_command(const MetricsServer& metrics) {
  const std::optional<std::string> socket = metrics.socket();
  if (!socket) return cat("curl ", metrics.address());
  return cat("curl --unix-socket ", shell_quoted(*socket), " ", metrics.address());
}

/// What is ready, and how to get at it.
std::string lines_of_service(const ServePlan& plan, nbd::ServerRun& run, DiskFormat format,
                             const MetricsServer* metrics) {
  const Device& disk = run.disk();
  return cat(
      attach_lines(run.addresses(), plan.export_name),
      plan.connect ? cat("attached to ", *plan.connect, "\n") : "",
      plan.control ? cat("  steer it   byre ctl nodes --socket ", shell_quoted(*plan.control), "\n")
                   : "",
      metrics ? cat("  watch it   ", curl_command(*metrics), "\n") : "", "ready: ", plan.image,
      " (", name_of(format), ", ", size_text(round_up(disk.size(), kSectorSize)),
      disk.writable() ? "" : ", read-only", "); ctrl-C ends\n");
}
Json json_of_service(const ServePlan& plan, nbd::ServerRun& run, DiskFormat format,
                     const MetricsServer* metrics) {
  const Device& disk = run.disk();
  Json uris = Json::array();
  for (const nbd::Uri& address : run.addresses()) uris.push_back(Json(address.text()));
  Json json{{"filename", plan.image},
            {"format", name_of(format)},
            {"virtual-size", round_up(disk.size(), kSectorSize)},
            {"writable", disk.writable()},
            {"export", plan.export_name},
            {"uris", std::move(uris)},
            {"pid", getpid()}};
  if (plan.connect) json["device"] = Json(*plan.connect);
  if (plan.control) json["control"] = Json(*plan.control);
  if (metrics) {
    json["metrics"] = Json{{"uri", metrics->address()}};
    if (const std::optional<std::string> socket = metrics->socket())
      json["metrics"]["socket"] = Json(*socket);
  }
  return json;
}
/// Where the image is that clients use now.
using CurrentImage = std::function<Image*()>;

/// It listens: says so to the user, to the file that names our process, and to a waiting parent.
Task<void> announce(Session& session, const ServePlan& plan, nbd::ServerRun& run, DiskFormat format,
                    const MetricsServer* metrics) {
  if (!plan.pid_file.empty()) co_await write_pid_file(plan.pid_file);
  if (plan.announce) {
    if (session.json()) {
      session.print(to_json_line(json_of_service(plan, run, format, metrics)) + "\n");
    } else {
      session.print(lines_of_service(plan, run, format, metrics));
    }
    if (!session.flush_output()) co_await fail(errno_error(errno, "write to stdout"));
  }
  if (!plan.connected.empty()) session.note(cat(plan.connected, "\n"));
  if (plan.ready_fd >= 0) co_await detach(plan.ready_fd);
}

/// The contexts of the plan's bitmaps; what is wrong is told once all were looked at.
Task<std::vector<nbd::ExportContext>> contexts_of(Image* image, std::vector<std::string> bitmaps) {
  std::vector<nbd::ExportContext> contexts;
  Result<void> failed;
  for (const std::string& name : bitmaps) {
    Result<nbd::ExportContext> context = co_await context_of(image, name).result();
    if (context) {
      contexts.push_back(*std::move(context));
    } else if (failed) {
      failed = std::move(context).error();
    }
  }
  co_await std::move(failed);
  co_return contexts;
}

nbd::ListenPlan listen_plan_of(const ServePlan& plan) {
  nbd::ListenPlan listen{.socket = plan.socket,
                         .default_socket_hint = "; --socket chooses another place",
                         .port = plan.port,
                         .address = plan.address,
                         .may_be_nowhere = plan.connect.has_value()};
  const Result<std::string> file = file_of(plan.image, plan.open);
  if (plan.default_socket && file) listen.default_socket = cat(*file, ".sock");
  return listen;
}

/// Listens where the plan says; null: no metrics are wanted.
Task<std::unique_ptr<MetricsServer>> offer_metrics(Session& session, const ServePlan& plan,
                                                   const nbd::ServerRun& run, CurrentImage image) {
  if (!plan.metrics) co_return std::unique_ptr<MetricsServer>();
  const MetricsPlace place = co_await parse_metrics_place(*plan.metrics);
  Listener listener =
      place.socket ? co_await Listener::listen_unix(session.reactor(), *place.socket)
                   : co_await Listener::listen_tcp(session.reactor(), place.address, place.port);
  co_return co_await MetricsServer::make(session.reactor(), std::move(listener),
                                         [&plan, &run, image = std::move(image)] {
                                           return metrics_page({.version = BYRE_VERSION,
                                                                .export_name = plan.export_name,
                                                                .server = &run.statistics(),
                                                                .image_name = plan.image,
                                                                .image = image()});
                                         });
}

/// Also where others wait for the place; 0: whoever is silent keeps it.
void limit_handshakes(uint32_t seconds, nbd::ServerOptions& options) {
  const int64_t limit = seconds * kSecond;
  options.limits.handshake_timeout_ns = limit;
  options.crowded_timeout_ns = std::min(options.crowded_timeout_ns, limit);
}

/// Serves, and tells the user about it; until the end of the last request.
Task<void> run_and_report(nbd::ServerRun& run, ServeReporter& reporter, const ServePlan& plan,
                          Image* image, SignalWatch* check_signals, MetricsServer* metrics,
                          ServeControl* control) {
  const auto check = [&]() -> Task<void> {
    Progress progress;
    progress.stop_when([&run] { return run.ending(); });
    Image* const checked = control ? control->image(run) : image;
    // A job may lead clients to another image meanwhile, which others may then close.
    Child kept = control && checked ? Child::to(*checked).hold() : Child();
    co_await reporter.check(checked, progress);
    if (kept) co_await kept.close();
  };
  reporter.begin(!plan.quiet);
  if (metrics) run.beside(metrics->run(), [metrics] { metrics->stop(); });
  if (check_signals) run.on_signal(*check_signals, check);
  if (plan.check_every) run.every(static_cast<int64_t>(*plan.check_every) * kSecond, check);
  if (!plan.quiet) {
    run.every(reporter.pause_ns(), [&]() -> Task<void> {
      reporter.show(run.statistics());
      co_return;
    });
  }
  const Result<void> served = co_await run.serve().result();
  reporter.end();
  if (!served) co_await fail(served.error().copy());
}

/// A client of the monitor may ask the server to quit.
Task<void> control_until_end(ServeControl& control, std::function<void()> stop) {
  co_await control.run();
  stop();
}

}  // namespace

Result<uint16_t> parse_port(const std::string& text) {
  const Result<uint64_t> port = parse_number(text, 0, 65535);
  if (!port)
    return invalid("Invalid port: ", byre::quoted(text), " (0 to 65535; 0 is any that is free)");
  return static_cast<uint16_t>(*port);
}

Result<DetectZeroesMode> parse_detect_zeroes(const std::string& text, DiscardPolicy discard) {
  if (text == "off") return DetectZeroesMode::off;
  if (text == "on") return DetectZeroesMode::on;
  if (text != "unmap") {
    return invalid("Failed to parse detect_zeroes mode: invalid parameter value: ", text,
                   " (off, on or unmap)");
  }
  if (discard != DiscardPolicy::unmap) {
    return invalid(
        "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
  }
  return DetectZeroesMode::unmap;
}

Result<MetricsPlace> parse_metrics_place(const std::string& text) {
  MetricsPlace place;
  if (text.find('/') != std::string::npos) {
    place.socket = text;
    return place;
  }
  const size_t colon = text.rfind(':');
  if (colon != std::string::npos) place.address = text.substr(0, colon);
  if (place.address.starts_with('[') && place.address.ends_with(']')) {  // An IPv6 address.
    place.address = place.address.substr(1, place.address.size() - 2);
  }
  const Result<uint64_t> port =
      parse_number(colon == std::string::npos ? text : text.substr(colon + 1), 0, 65535);
  if (!port || place.address.empty()) {
    return invalid("Invalid --metrics: ", byre::quoted(text),
                   " ([HOST:]PORT, where port 0 is any that is free, or the path of a unix socket, "
                   "with a slash)");
  }
  place.port = static_cast<uint16_t>(*port);
  return place;
}

Task<void> disconnect_device(Session& session, std::string device) {
  // A server that is well needs as long as its disk does; one that is not must not keep the device.
  constexpr int64_t kPatience = 10 * kSecond;
  co_await NbdDevice::take_away(session.reactor(), std::move(device), kPatience);
}

Task<int> serve_plan(Session& session, ServePlan plan) {
  // Before there are threads that would get the signal.
  std::optional<SignalWatch> signals;
  if (plan.check_on_signal) {
    signals.emplace(co_await SignalWatch::make(session.reactor(), {SIGUSR1}));
  }
  ServiceManager manager(session.reactor(), getenv);
  co_await manager.tell_status(cat("opening ", plan.image));
  SystemGate opener(session.reactor(), session.policy(plan.open.follow));
  co_await make_if_missing(session, opener, plan);
  Disk disk = co_await open_served(session, opener, plan);
  if (plan.check_every && !disk.image) {
    co_await disk.device.close();
    co_return invalid(byre::quoted(plan.image),
                      " is raw, which has no checks; leave --check-every out");
  }
  KernelClient kernel(session.reactor());
  if (plan.connect) {
    Result<void> opened = co_await kernel.open(*plan.connect).result();
    if (!opened) {
      co_await disk.device.close();
      co_return std::move(opened).error();
    }
  }
  std::unique_ptr<ServeControl> control;
  if (plan.control) {
    control = std::make_unique<ServeControl>(session, opener, plan);
    control->adopt(disk);
  }
  Result<std::vector<nbd::ExportContext>> contexts =
      control ? co_await control->contexts().result()
              : co_await contexts_of(disk.image, plan.bitmaps).result();
  co_await put_overlay(opener, plan, disk);
  put_layers(plan, disk);

  ServeReporter reporter(session, plan.image, plan.report);
  nbd::ServerOptions options{.connections_max = plan.connections_max,
                             .end_with_last_client = plan.until_last_client || plan.connect,
                             .report = [&](const Error& error) { reporter.error(error); }};
  if (plan.handshake_limit) limit_handshakes(*plan.handshake_limit, options);
  nbd::ServerRun run(session.reactor(), std::move(disk.device), byre::quoted(plan.image),
                     std::move(options));
  // Before somebody sees the socket: a signal that comes then ends it in order.
  Scope telling(session.reactor().ready());
  const auto stop = [&] {
    telling.spawn(kernel.leave(run));
    if (control) control->stop();
    telling.spawn(manager.tell_stopping());
  };
  const auto waiting_for = [&] { return control ? control->waiting_for(run) : run.waiting_for(); };
  const Session::Interruptible guard(session, {.about = byre::quoted(plan.image),
                                               .stop = stop,
                                               .waiting_for = waiting_for,
                                               .is_server = true});
  Result<void> served;
  if (contexts) {
    nbd::Export target{.name = plan.export_name,
                       .description = plan.description,
                       .writable = run.disk().writable(),
                       .depth = plan.depth,
                       .contexts = *std::move(contexts)};
    served = co_await run.listen(std::move(target), listen_plan_of(plan)).result();
  } else {
    served = std::move(contexts).error();
  }
  if (served && control) served = co_await control->open(run).result();
  std::unique_ptr<MetricsServer> metrics;
  if (served) {
    Result<std::unique_ptr<MetricsServer>> offered =
        co_await offer_metrics(session, plan, run, [&run, &control, image = disk.image] {
          return control ? control->image(run) : image;
        }).result();
    if (offered) {
      metrics = *std::move(offered);
    } else {
      served = std::move(offered).error().while_doing("--metrics");
    }
  }
  if (served && plan.connect && session.interrupted() == 0)
    served = co_await kernel.attach(run).result();
  if (served) served = co_await announce(session, plan, run, disk.format, metrics.get()).result();
  if (served && session.interrupted() == 0) {
    co_await manager.tell_ready(cat("serving ", plan.image));
    telling.spawn(manager.feed_watchdog());
    SignalWatch* const check_signals = signals ? &*signals : nullptr;
    if (control) {
      run.beside(control_until_end(*control, stop), [&control] { control->stop(); });
    }
    served = co_await run_and_report(run, reporter, plan, disk.image, check_signals, metrics.get(),
                                     control.get())
                 .result();
  }

  // Everything that was answered becomes durable, whatever ended the server.
  co_await manager.tell_stopping();
  if (kernel.attached() && !served) {  // It waits for a server that has not begun.
    co_await kernel.leave(run);
    const Result<void> left = co_await run.serve().result();
  }
  Result<void> ended = control ? co_await control->end(run).result() : co_await run.end().result();
  Result<void> let_go = co_await kernel.end(run).result();
  manager.stop();
  co_await telling.join();
  if (!plan.pid_file.empty()) unlink(plan.pid_file.c_str());
  co_await std::move(served);
  co_await std::move(ended);
  co_await std::move(let_go);
  if (plan.announce) {
    const std::string sum = cat("ended: ", ServeReporter::summary(run.statistics()), "\n");
    if (session.json()) session.note(sum);
    session.say(sum);
  }
  co_return 0;
}

}  // namespace byre
