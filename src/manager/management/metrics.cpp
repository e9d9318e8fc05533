// What the manager and its parts count, as families of Prometheus' text format. Names end with their unit; counters with
// _total (prometheus.io, "Metric and label naming").
#include "manager/management/control_service.hpp"

namespace vtpmd::manager {

namespace {

class Families {
  public:
    Metric& add(std::string name, std::string_view type, std::string help) {
        return out.emplace_back(Metric{.name = std::move(name), .help = std::move(help), .type = type, .samples = {}});
    }
    template <typename T>
    void counter(std::string name, std::string help, T value) {
        add(std::move(name), "counter", std::move(help)).samples.push_back({.value = static_cast<double>(value)});
    }
    template <typename T>
    void gauge(std::string name, std::string help, T value) {
        add(std::move(name), "gauge", std::move(help)).samples.push_back({.value = static_cast<double>(value)});
    }
    std::vector<Metric> out;
};

/// Cumulative, with the sum where there is one.
template <std::size_t N>
void add_buckets(Metric& m, const std::array<std::uint64_t, N>& counts, const std::array<std::string, N - 1>& bounds,
                 double sum) {
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < N; ++i) {
        below += counts[i];
        m.samples.push_back({.suffix = "_bucket",
                             .labels = fmt::format("le=\"{}\"", i < bounds.size() ? bounds[i] : "+Inf"),
                             .value = static_cast<double>(below)});
    }
    m.samples.push_back({.suffix = "_sum", .value = sum});
    m.samples.push_back({.suffix = "_count", .value = static_cast<double>(below)});
}

void add_vtpms(Families& f, const ControlService& control) {
    const std::map<VtpmState, std::size_t> states = control.count_states();
    Metric& m = f.add("vtpmd_vtpms", "gauge", "Registered vTPMs by state");
    for (VtpmState s : {VtpmState::fresh, VtpmState::stopped, VtpmState::starting, VtpmState::running, VtpmState::open,
                        VtpmState::unknown}) {
        const auto it = states.find(s);
        m.samples.push_back({.labels = fmt::format("state=\"{}\"", to_string(s)),
                             .value = it == states.end() ? 0 : static_cast<double>(it->second)});
    }
    f.gauge("vtpmd_tombstones", "vTPMs that were deleted or migrated away", control.host().tombstones);
}

void add_service(Families& f, KeyService& service) {
    const ServiceCounters& c = service.counters();
    Metric& m = f.add("vtpmd_requests_total", "counter", "Requests of instances by kind and outcome");
    for (std::size_t i = 0; i < request_names.size(); ++i) {
        const auto& o = c.requests[i];
        for (auto [outcome, value] : {std::pair{"done", o.done}, {"refused", o.refused}, {"failed", o.failed}}) {
            m.samples.push_back({.labels = fmt::format("request=\"{}\",outcome=\"{}\"", request_names[i], outcome),
                                 .value = static_cast<double>(value)});
        }
    }
    f.counter("vtpmd_connections_total", "Connections of instances", c.connections);
    f.counter("vtpmd_connections_refused_total", "Connections refused by credentials or number", c.connections_refused);
    f.counter("vtpmd_links_broken_total", "Connections ended by malformed frames or a deadline", c.links_broken);
    f.counter("vtpmd_over_bounds_total",
              "Changes, hand-overs and certificates refused to a vTPM that asked for too many", c.over_bounds);
    f.counter("vtpmd_registered_total", "vTPMs registered since start", c.registered);
    f.gauge("vtpmd_links", "Connections of instances now", service.link_count());
}

void add_store(Families& f, const Vault& vault) {
    const store::JournalCounters& c = vault.journal_counters();
    const Vault::Fill fill = vault.fill();
    f.counter("vtpmd_journal_records_total", "Records made durable", c.records);
    f.counter("vtpmd_journal_batches_total", "Batches that the records shared", c.batches);
    f.counter("vtpmd_journal_syncs_total", "Syncs of the store", c.syncs);
    f.counter("vtpmd_journal_checkpoints_total", "Checkpoints written", c.checkpoints);
    f.counter("vtpmd_journal_bytes_total", "Bytes written to the store", c.bytes);
    f.gauge("vtpmd_journal_waiting", "Callers whose records are in no batch yet", c.waiting);
    std::array<std::string, store::JournalCounters::batch_bounds.size()> bounds;
    for (std::size_t i = 0; i < bounds.size(); ++i) {
        bounds[i] = fmt::format("{}", store::JournalCounters::batch_bounds[i]);
    }
    Metric& sizes = f.add("vtpmd_journal_batch_records", "histogram", "Records that shared a batch");
    add_buckets(sizes, c.batch_sizes, bounds, static_cast<double>(c.records));
    f.gauge("vtpmd_journal_largest_batch", "Records of the largest batch", c.largest_batch);
    f.gauge("vtpmd_store_bytes", "Bytes that records may take", fill.limit);
    f.gauge("vtpmd_store_used_bytes", "Of them, taken now", fill.used);
    f.gauge("vtpmd_store_reserved_bytes", "Of them, what everything that is registered can come to", fill.reserved);
    f.gauge("vtpmd_store_writable", "0 while the store takes no writes", vault.trouble().empty() ? 1 : 0);
    f.counter("vtpmd_journal_refused_total", "Changes that could not follow what was there", c.refused);
    f.gauge("vtpmd_journal_set_aside", "Records of an older program that were set aside at the start", c.set_aside);
}

void add_freshness(Families& f, const FreshnessInfo& i) {
    f.gauge("vtpmd_freshness_counter", "The hardware TPM's counter: the wear of its part", i.counter);
    f.counter("vtpmd_freshness_steps_total", "Steps of the counter", i.steps);
    f.counter("vtpmd_freshness_failures_total", "Steps that the hardware TPM refused or did not answer", i.failures);
    f.counter("vtpmd_freshness_steps_beyond_total", "Steps beyond 20,000 a day: something wears the hardware TPM down",
              i.beyond);
    f.gauge("vtpmd_freshness_owed", "1 while the store is ahead of the counter", i.owed ? 1 : 0);
}

void add_hardware(Families& f, const hwtpm::HardwareMetrics& h) {
    f.counter("vtpmd_hwtpm_commands_total", "Commands sent to the hardware TPM", h.commands);
    f.counter("vtpmd_hwtpm_retries_total", "Of them, sent again because it said later", h.retries);
    Metric& jobs = f.add("vtpmd_hwtpm_jobs_total", "counter", "Jobs for the hardware TPM by urgency");
    jobs.samples.push_back({.labels = "urgency=\"urgent\"", .value = static_cast<double>(h.urgent_jobs)});
    jobs.samples.push_back({.labels = "urgency=\"routine\"", .value = static_cast<double>(h.routine_jobs)});
    Metric& waiting = f.add("vtpmd_hwtpm_waiting", "gauge", "Jobs for the hardware TPM that are not done, by urgency");
    waiting.samples.push_back({.labels = "urgency=\"urgent\"", .value = static_cast<double>(h.urgent_waiting)});
    waiting.samples.push_back({.labels = "urgency=\"routine\"", .value = static_cast<double>(h.routine_waiting)});
    f.counter("vtpmd_hwtpm_batches_total", "Claims of the hardware TPM's locality", h.batches);
    f.gauge("vtpmd_hwtpm_largest_batch", "Jobs of the largest batch", h.largest_batch);
    Metric& m = f.add("vtpmd_hwtpm_job_seconds", "histogram", "From a job's acceptance to its result");
    std::array<std::string, hwtpm::HardwareMetrics::latency_bounds.size()> bounds;
    for (std::size_t i = 0; i < bounds.size(); ++i) {
        bounds[i] = fmt::format("{}", static_cast<double>(hwtpm::HardwareMetrics::latency_bounds[i].count()) / 1000.0);
    }
    add_buckets(m, h.latency, bounds, static_cast<double>(h.latency_sum.count()) / 1e9);
}

void add_guests(Families& f, const GuestTotals::Sums& sums) {
    Metric& m = f.add("vtpmd_guest_commands_total", "counter",
                      "Commands of guests by name and outcome, as their instances report them");
    for (const auto& [name, t] : sums.commands) {
        for (auto [outcome, value] : {std::pair{"success", t.success},
                                      {"tpm_error", t.tpm_error},
                                      {"refused", t.refused},
                                      {"not_durable", t.not_durable}}) {
            m.samples.push_back({.labels = fmt::format("ordinal=\"{}\",outcome=\"{}\"", name, outcome),
                                 .value = static_cast<double>(value)});
        }
    }
    std::array<std::string, proto::latency_bounds.size()> bounds;
    for (std::size_t i = 0; i < bounds.size(); ++i) {
        bounds[i] = fmt::format("{}", static_cast<double>(proto::latency_bounds[i].count()) / 1e6);
    }
    Metric& seconds = f.add("vtpmd_guest_command_seconds", "histogram",
                            "From a guest's command to its answer, its turn and its commit included");
    add_buckets(seconds, sums.latency, bounds, static_cast<double>(sums.latency_ns) / 1e9);
    f.counter("vtpmd_guest_commits_total", "States of vTPMs that instances made durable", sums.commits);
    f.counter("vtpmd_guest_commit_failures_total", "Attempts at that which failed", sums.commit_failures);
}

void add_supervisor(Families& f, const Supervisor& s) {
    const SupervisorCounters& c = s.counters();
    f.gauge("vtpmd_instances", "Instances that the manager started and that run", s.running());
    f.counter("vtpmd_instances_started_total", "Instances started", c.started);
    f.counter("vtpmd_instances_failed_total", "Instances that ended other than in good order", c.failed);
    f.counter("vtpmd_instances_given_up_total", "Instances that are not started again", c.given_up);
}

} // namespace

std::vector<Metric> collect_metrics(const ControlService& control, const ControlService::Parts& parts) {
    Families f;
    add_vtpms(f, control);
    add_service(f, parts.service);
    add_store(f, parts.vault);
    add_freshness(f, control.freshness());
    add_hardware(f, parts.root.metrics());
    add_supervisor(f, parts.supervisor);
    add_guests(f, parts.guests.sums());
    return std::move(f.out);
}

} // namespace vtpmd::manager
