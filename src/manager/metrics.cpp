// What the manager and its parts count, as families of Prometheus' text format. Names end with their unit; counters with
// _total (prometheus.io, "Metric and label naming").
#include "manager/control_service.hpp"

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

void add_vtpms(Families& f, const ControlService& control) {
    const std::map<VtpmState, std::size_t> states = control.count_states();
    Metric& m = f.add("vtpmd_vtpms", "gauge", "Registered vTPMs by state");
    for (VtpmState s :
         {VtpmState::fresh, VtpmState::stopped, VtpmState::starting, VtpmState::running, VtpmState::open}) {
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
    f.counter("vtpmd_registered_total", "vTPMs registered since start", c.registered);
    f.gauge("vtpmd_links", "Connections of instances now", service.link_count());
}

void add_store(Families& f, const store::JournalCounters& c) {
    f.counter("vtpmd_journal_records_total", "Records made durable", c.records);
    f.counter("vtpmd_journal_batches_total", "Batches that the records shared", c.batches);
    f.counter("vtpmd_journal_syncs_total", "Syncs of the store", c.syncs);
    f.counter("vtpmd_journal_checkpoints_total", "Checkpoints written", c.checkpoints);
    f.counter("vtpmd_journal_bytes_total", "Bytes written to the store", c.bytes);
    f.gauge("vtpmd_journal_largest_batch", "Records of the largest batch", c.largest_batch);
    f.gauge("vtpmd_store_bytes", "Bytes that records have room for", c.half_bytes);
    f.gauge("vtpmd_store_used_bytes", "Of them, taken by the last checkpoint", c.checkpoint_bytes);
}

void add_freshness(Families& f, const FreshnessInfo& i) {
    f.gauge("vtpmd_freshness_counter", "The hardware TPM's counter: the wear of its part", i.counter);
    f.counter("vtpmd_freshness_steps_total", "Steps of the counter", i.steps);
    f.counter("vtpmd_freshness_failures_total", "Steps that the hardware TPM refused or did not answer", i.failures);
    f.gauge("vtpmd_freshness_owed", "1 while the store is ahead of the counter", i.owed ? 1 : 0);
}

void add_hardware(Families& f, const hwtpm::HardwareMetrics& h) {
    f.counter("vtpmd_hwtpm_commands_total", "Commands sent to the hardware TPM", h.commands);
    f.counter("vtpmd_hwtpm_retries_total", "Of them, sent again because it said later", h.retries);
    Metric& jobs = f.add("vtpmd_hwtpm_jobs_total", "counter", "Jobs for the hardware TPM by urgency");
    jobs.samples.push_back({.labels = "urgency=\"urgent\"", .value = static_cast<double>(h.urgent_jobs)});
    jobs.samples.push_back({.labels = "urgency=\"routine\"", .value = static_cast<double>(h.routine_jobs)});
    f.counter("vtpmd_hwtpm_batches_total", "Claims of the hardware TPM's locality", h.batches);
    f.gauge("vtpmd_hwtpm_largest_batch", "Jobs of the largest batch", h.largest_batch);
    Metric& m = f.add("vtpmd_hwtpm_job_seconds", "histogram", "From a job's acceptance to its result");
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < h.latency.size(); ++i) {
        below += h.latency[i];
        const std::string bound = i < h.latency_bounds.size()
                                      ? fmt::format("{}", static_cast<double>(h.latency_bounds[i].count()) / 1000.0)
                                      : "+Inf";
        m.samples.push_back(
            {.suffix = "_bucket", .labels = fmt::format("le=\"{}\"", bound), .value = static_cast<double>(below)});
    }
    m.samples.push_back({.suffix = "_sum", .value = static_cast<double>(h.latency_sum.count()) / 1e9});
    m.samples.push_back({.suffix = "_count", .value = static_cast<double>(below)});
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
    add_store(f, parts.vault.journal_counters());
    add_freshness(f, control.freshness());
    add_hardware(f, parts.root.metrics());
    add_supervisor(f, parts.supervisor);
    return std::move(f.out);
}

} // namespace vtpmd::manager
