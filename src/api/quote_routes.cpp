// Deep quotes over HTTP, for the host's operator. A quote shows PCRs and the public part of a key, and changes nothing; it is made all the
// same for those only who may change something: it speaks with the group's key for whatever nonce it is given, and keeps the
// hardware TPM busy.
#include "api/handlers.hpp"
#include "util/text.hpp"

namespace vtpmd::api {

namespace {

namespace json = boost::json;

constexpr Field quote_fields[] = {
    {"nonce", "string", true, "1 to 64 bytes in hexadecimal, chosen by whoever is to be shown something"},
    {"pcrs", "string", false,
     "PCRs of the vTPM, as sha256:0,2+sha1:10, or none; 0 to 7 of sha256 (of sha1 of a TPM 1.2) if it is left out"},
    {"host_pcrs", "string", false, "PCRs of the hardware TPM, the same; 0 to 7 of its best bank if it is left out"},
};

Task<Result<Response>> quote_vtpm(Call call) {
    auto nonce = bytes_of(call.body, "nonce");
    if (!nonce) {
        co_return nonce.error();
    }
    manager::QuoteOrder order{.nonce = std::move(*nonce),
                              .pcrs = std::string(text_of(call.body, "pcrs", "")),
                              .host_pcrs = std::string(text_of(call.body, "host_pcrs", ""))};
    auto quoted = co_await call.control.quote(call.uuid, std::move(order));
    if (!quoted) {
        co_return quoted.error();
    }
    co_return answer(200, json::object{{"uuid", to_string(call.uuid)}, {"quote", to_hex(*quoted)}});
}

} // namespace

std::vector<Route> quote_routes() {
    return {
        {{"POST", "/v1/vtpms/{uuid}/quote", "A deep quote, as vtpmctl verify-quote checks it; the vTPM has to run",
          quote_fields},
         quote_vtpm},
    };
}

} // namespace vtpmd::api
