// Deep quotes that the operator asks for: the manager asks the vTPM's instance, which asks back for the hardware's part
// (DeepQuotes), as it does for its guest.
#include "manager/management/control_service.hpp"
#include "quote/deep_quote.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

/// Two long commands on a slow hardware TPM, or a guest's long command before it.
constexpr auto quote_patience = std::chrono::seconds(30);
constexpr std::uint32_t first_eight = 0xFF;

/// BANK:INDICES, joined by '+'. No two of a bank; in the order in which proto::check() wants them.
Result<std::vector<proto::QuoteSelection>> parse_selections(std::string_view text) {
    std::vector<proto::QuoteSelection> out;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('+'), text.size());
        auto one = hwtpm::parse_pcr_selection(text.substr(0, end));
        if (!one) {
            return one.error();
        }
        proto::QuoteSelection s{.bank = static_cast<std::uint16_t>(one->bank)};
        for (unsigned pcr : one->pcrs) {
            s.pcrs |= 1U << pcr;
        }
        if (s.pcrs != 0) {
            out.push_back(s);
        }
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    std::ranges::sort(out, {}, &proto::QuoteSelection::bank);
    return out;
}

Result<proto::AskQuote> question_of(const QuoteOrder& order, TpmVersion version) {
    auto pcrs = parse_selections(order.pcrs);
    if (!pcrs) {
        return in_context(std::move(pcrs).error(), "pcrs");
    }
    auto host = parse_selections(order.host_pcrs);
    if (!host) {
        return in_context(std::move(host).error(), "host_pcrs");
    }
    if (order.pcrs.empty()) {
        const auto best = version == TpmVersion::tpm12 ? hwtpm::HashAlg::sha1 : hwtpm::HashAlg::sha256;
        pcrs->push_back({.bank = static_cast<std::uint16_t>(best), .pcrs = first_eight});
    }
    if (order.host_pcrs.empty()) {
        host->push_back({.bank = 0, .pcrs = first_eight});
    }
    proto::AskQuote question{.nonce = order.nonce, .pcrs = std::move(*pcrs), .host_pcrs = std::move(*host)};
    if (auto good = proto::check(question); !good) {
        return good.error();
    }
    return question;
}

/// An instance is taken at its word for its own PCRs and key only.
Result<void> check_answer(ByteView answer, const Uuid& vtpm, const Uuid& group, const Bytes& nonce) {
    auto deep = quote::decode_deep_quote(answer);
    if (!deep) {
        return in_context(std::move(deep).error(),
                          fmt::format("vTPM {}: its instance's answer is no deep quote", vtpm));
    }
    if (deep->claims.vtpm != vtpm || deep->claims.group != group || deep->claims.nonce != nonce) {
        return make_error(Errc::protocol, "vTPM {}: its instance answered with the quote of vTPM {}, group {}", vtpm,
                          deep->claims.vtpm, deep->claims.group);
    }
    return {};
}

} // namespace

Task<Result<Bytes>> ControlService::quote(Uuid uuid, QuoteOrder order) {
    auto found = find(uuid);
    if (!found) {
        co_return found.error();
    }
    auto question = question_of(order, (*found)->version);
    if (!question) {
        co_return question.error();
    }
    // Known here better than by the instance, which gets a status only.
    auto group = parts_.quotes.can_make(uuid, question->host_pcrs);
    if (!group) {
        co_return group.error();
    }
    Bytes frame = proto::encode_ask_quote(*question);
    auto answer = co_await parts_.service.ask(uuid, std::move(frame), quote_patience);
    if (!answer) {
        co_return answer;
    }
    if (auto good = check_answer(*answer, uuid, *group, order.nonce); !good) {
        co_return good.error();
    }
    co_return answer;
}

} // namespace vtpmd::manager
