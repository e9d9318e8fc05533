#include "hwtpm/queue/requests.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace vtpmd::hwtpm {

std::optional<Bytes> RandomPool::take(std::size_t count) {
    if (count > available()) {
        return std::nullopt;
    }
    MutByteView part = kept_.mut().subspan(used_, count);
    Bytes out(part.begin(), part.end());
    cleanse(part);
    used_ += count;
    return out;
}

void RandomPool::add(ByteView fresh) {
    SecretBytes next(available() + fresh.size());
    ByteView old = kept_.view().subspan(used_);
    std::copy(fresh.begin(), fresh.end(), std::copy(old.begin(), old.end(), next.data()));
    kept_ = std::move(next);
    used_ = 0;
}

std::size_t RandomPool::fetch_size(std::size_t asked) const noexcept {
    const std::size_t wanted = asked + config_.spare;
    if (asked == 0 || wanted <= available()) {
        return 0;
    }
    return std::min(wanted - available(), config_.chunk);
}

std::vector<PcrSelection> merged(const std::vector<std::vector<PcrSelection>>& requests) {
    std::map<HashAlg, std::set<unsigned>> all;
    for (const auto& request : requests) {
        for (const PcrSelection& s : request) {
            all[s.bank].insert(s.pcrs.begin(), s.pcrs.end());
        }
    }
    std::vector<PcrSelection> out;
    out.reserve(all.size());
    for (const auto& [bank, pcrs] : all) {
        out.push_back({bank, {pcrs.begin(), pcrs.end()}});
    }
    return out;
}

std::vector<PcrValue> part_of(const std::vector<PcrValue>& values, const std::vector<PcrSelection>& request) {
    std::vector<PcrValue> out;
    std::copy_if(values.begin(), values.end(), std::back_inserter(out), [&](const PcrValue& v) {
        return std::any_of(request.begin(), request.end(), [&](const PcrSelection& s) {
            return s.bank == v.bank && std::find(s.pcrs.begin(), s.pcrs.end(), v.index) != s.pcrs.end();
        });
    });
    return out;
}

} // namespace vtpmd::hwtpm
