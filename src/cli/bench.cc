// SPDX-License-Identifier: Apache-2.0
/// `byre bench`: how fast requests of one size are.
#include "job/bench.h"

#include <fmt/core.h>

#include <cstring>

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "cli/ranged.h"
#include "cli/text.h"

namespace byre {

namespace {

/// What buffers may take together.
constexpr uint64_t kMemoryMax = 4 * GiB;

struct BenchArgs : OpenArgs {
  std::string image;
  std::optional<uint64_t> count;
  std::optional<uint64_t> depth;
  std::optional<uint64_t> offset;
  std::optional<uint64_t> size;
  std::optional<uint64_t> step;
  std::optional<uint64_t> pattern;
  std::optional<uint64_t> flush_interval;
  std::string cache = "writeback";
  std::optional<std::string> aio;
  bool native = false;
  bool no_drain = false;
  bool write = false;
  bool progress = false;
  bool quiet = false;
};

using Parse = Result<uint64_t> (*)(std::string_view, const ValueRange&);

Argument ranged(std::string_view names, std::string_view metavar,
                std::optional<uint64_t> BenchArgs::* member, Parse parse, ValueRange range,
                std::string_view help) {
  Argument argument = detail::named(Argument::Kind::option, names, metavar, help);
  argument.store = [member, parse, range](void* args, std::string_view value) -> Result<void> {
    BYRE_TRY(number, parse(value, range));
    static_cast<BenchArgs*>(args)->*member = number;
    return {};
  };
  return argument;
}

Result<void> look_at_aio(std::string_view value) {
  if (value == "threads" || value == "native" || value == "io_uring") return {};
  return invalid("Invalid aio option: ", value);
}

Result<void> look_at_cache(std::string_view value) {
  if (find_cache_mode(value)) return {};
  return invalid("Invalid cache mode");
}

Result<BenchOptions> read_options(const BenchArgs& args, CacheMode cache) {
  const std::string aio = args.native ? "native" : args.aio.value_or("threads");
  BenchOptions options{.write = args.write,
                       .drain = !args.no_drain,
                       .flushes = cache != CacheMode::unsafe,
                       .fua = is_write_through(cache)};
  options.count = args.count.value_or(options.count);
  options.depth = args.depth.value_or(options.depth);
  options.offset = args.offset.value_or(0);
  options.size = args.size.value_or(options.size);
  // A step of 0 is none that was given.
  options.step = args.step.value_or(0) != 0 ? *args.step : options.size;
  options.pattern = static_cast<std::byte>(args.pattern.value_or(0));
  options.flush_interval = args.flush_interval.value_or(0);
  if (options.flush_interval != 0 && !args.write) {
    return invalid("--flush-interval is only available in write tests");
  }
  if (options.flush_interval != 0 && options.flush_interval < options.depth) {
    return invalid("Flush interval can't be smaller than depth");
  }
  if (Bench::memory_for(options) > kMemoryMax) {
    return invalid(options.depth, " requests of ", options.size, " bytes in parallel need ",
                   size_text(Bench::memory_for(options)), " of memory, allowed are ",
                   size_text(kMemoryMax));
  }
  if (aio == "native" && !is_direct(cache)) {
    return could_not_open(args.image, invalid("aio=native was specified, but it requires "
                                              "cache.direct=on, which was not specified."));
  }
  return options;
}

std::string what_is_sent(const BenchArgs& args, const BenchOptions& options) {
  std::string text =
      cat("Sending ", options.count, args.write ? " write" : " read", " requests, ", options.size,
          " bytes each, ", options.depth, " in parallel (starting at offset ", options.offset,
          ", step size ", options.step, ")\n");
  if (options.flush_interval != 0) {
    text += cat("Sending flush every ", options.flush_interval, " requests\n");
  }
  return text;
}

struct Rates {
  double requests = 0;  ///< In a second.
  double bytes = 0;
};

Rates rates_of(const BenchOptions& options, const BenchResult& result) {
  if (result.seconds <= 0) return {};
  const double requests = static_cast<double>(options.count) / result.seconds;
  return {.requests = requests, .bytes = requests * static_cast<double>(options.size)};
}

constexpr std::array kPercentiles = {0.5, 0.95, 0.99, 0.999};

/// More than qemu-img tells.
std::string details_of(const BenchOptions& options, const BenchResult& result) {
  const auto micros = [](auto ns) { return fmt::format("{:.1f}", static_cast<double>(ns) / 1e3); };
  const Rates rates = rates_of(options, result);
  const LatencyHistogram& latency = result.latency;
  std::string text = fmt::format("{:.0f} requests/s, {}/s\n", rates.requests,
                                 size_text(static_cast<uint64_t>(rates.bytes)));
  text += cat("latency in microseconds: least ", micros(latency.least_ns()), ", mean ",
              micros(latency.mean_ns()));
  for (double part : kPercentiles) {
    text += fmt::format(", {:g} % {}", part * 100, micros(latency.percentile_ns(part)));
  }
  return text + cat(", most ", micros(latency.most_ns()), "\n");
}

Json json_of(const BenchArgs& args, const BenchOptions& options, const BenchResult& result) {
  const Rates rates = rates_of(options, result);
  const LatencyHistogram& latency = result.latency;
  const auto whole = [](double value) { return static_cast<uint64_t>(value + 0.5); };
  Json json = {{"filename", args.image},
               {"request", args.write ? "write" : "read"},
               {"count", options.count},
               {"size", options.size},
               {"depth", options.depth},
               {"offset", options.offset},
               {"step", options.step},
               {"flushes", result.flushes},
               {"nanoseconds", whole(result.seconds * 1e9)},
               {"requests-per-second", whole(rates.requests)},
               {"bytes-per-second", whole(rates.bytes)}};
  Json list = {{"least", latency.least_ns()}, {"mean", whole(latency.mean_ns())}};
  for (double part : kPercentiles) {
    list[fmt::format("{:g}%", part * 100)] = latency.percentile_ns(part);
  }
  list["most"] = latency.most_ns();
  json["latency-nanoseconds"] = std::move(list);
  return json;
}

Error as_told(const Session& session, Error error) {
  if (error.code() == Errc::cancelled) return error;
  const bool has_cause = session.compatibility_name() && error.sys_errno() != 0;
  const std::string why =
      has_cause ? std::string(std::strerror(error.sys_errno())) : error.message();
  return Error(error.code(), cat("Failed request: ", why), error.sys_errno());
}

Task<void> measure(Session& session, BenchArgs args, const BenchOptions& options, Disk& disk) {
  if (!session.json()) session.print(what_is_sent(args, options));
  ProgressLine line(session, args.progress && !args.quiet);
  Progress progress;
  progress.on_change([&](const Progress& now) { line.update(now.done(), now.total()); });
  const Session::Interruptible guard(session, {.about = byre::quoted(args.image),
                                               .stop = [&] { progress.stop(); },
                                               .waiting_for = [] { return "requests under way"; }});
  Bench job(*disk.device, options, progress);
  Result<BenchResult> result = co_await job.run().result();
  if (!result) co_await fail(as_told(session, std::move(result).error()));
  if (session.json()) {
    session.print(to_json(json_of(args, options, *result)));
    co_return;
  }
  session.print(fmt::format("Run completed in {:3.3f} seconds.\n", result->seconds));
  if (!session.compatibility_name() && options.count != 0) {
    session.print(details_of(options, *result));
  }
}

Task<int> bench(Session& session, BenchArgs args) {
  const CacheMode cache = *find_cache_mode(args.cache);
  co_await check_format_option(args);
  const BenchOptions options = co_await read_options(args, cache);
  SystemGate opener(session.reactor(), session.policy(args.follow));
  Disk disk = co_await open_named(session, opener, args.image, args,
                                  {.writable = args.write, .direct = is_direct(cache)});
  if (args.write && disk.guessed && disk.format == DiskFormat::raw) {
    warn_of_guess(session, args.image);
  }
  Result<void> done = co_await measure(session, args, options, disk).result();
  Result<void> closed = co_await disk.device.close().result();
  co_await std::move(done);
  co_await std::move(closed);
  co_return 0;
}

const Command<BenchArgs> kDefinition({
    .name = "bench",
    .summary = "Measure how fast requests of one size are",
    .description =
        "Reads, or with -w overwrites, the disk. Request after request begins one step further, "
        "and at the end of the disk at its start again.",
    .args = {operand("IMAGE", &BenchArgs::image, "the disk"), format_argument<BenchArgs>(),
             flag("-w, --write", &BenchArgs::write, "write; what the disk held there is lost"),
             ranged("-c, --count", "COUNT", &BenchArgs::count, ranged_number,
                    {.what = "request count", .low = 1, .high = INT32_MAX},
                    "how many requests (75000)"),
             ranged("-d, --depth", "DEPTH", &BenchArgs::depth, ranged_number,
                    {.what = "queue depth", .low = 1, .high = INT32_MAX},
                    "how many of them at a time (64)"),
             ranged("-s, --buffer-size", "SIZE", &BenchArgs::size, ranged_size,
                    {.what = "buffer size", .low = 1, .high = INT32_MAX},
                    "how large each of them is (4k)"),
             ranged("-o, --offset", "OFFSET", &BenchArgs::offset, ranged_size,
                    {.what = "offset", .low = 0, .high = INT64_MAX},
                    "where the first one begins (0)"),
             ranged("-S, --step-size", "SIZE", &BenchArgs::step, ranged_size,
                    {.what = "step size", .low = 0, .high = INT32_MAX},
                    "how much further the next one begins (as large as they are)"),
             ranged("--pattern", "BYTE", &BenchArgs::pattern, ranged_number,
                    {.what = "pattern byte", .low = 0, .high = 255}, "what is written (0)"),
             ranged("--flush-interval", "COUNT", &BenchArgs::flush_interval, ranged_number,
                    {.what = "flush interval", .low = 0, .high = INT32_MAX},
                    "with -w: a flush after each so many requests"),
             flag("--no-drain", &BenchArgs::no_drain,
                  "requests go on while a flush runs, instead of waiting for it"),
             looked_at(option("-t, --cache", "CACHE", &BenchArgs::cache,
                              "writeback (the default); none: past the page cache; writethrough, "
                              "directsync: every write is durable; unsafe: no flush is sent"),
                       look_at_cache),
             looked_at(option("-i, --aio", "MODE", &BenchArgs::aio,
                              "threads, native or io_uring; byre chooses by itself"),
                       look_at_aio),
             flag("-n, --native", &BenchArgs::native, "as --aio native"),
             flag("-p, --progress", &BenchArgs::progress, "show how far it is (byre only)"),
             flag("-q, --quiet", &BenchArgs::quiet, "no progress"), share_argument<BenchArgs>(),
             scan_arguments<BenchArgs>(), follow_arguments<BenchArgs>()},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = bench,
});

}  // namespace

const AnyCommand& kBench = kDefinition;

}  // namespace byre
