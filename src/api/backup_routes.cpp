// Backup of the manager's store: its copy is the answer's body.
#include "api/handlers.hpp"

namespace vtpmd::api {

namespace {

Task<Result<Response>> make_backup(Call call) {
    auto copy = co_await call.control.backup();
    if (!copy) {
        co_return copy.error();
    }
    Response out{.content_type = "application/octet-stream"};
    out.stream = std::move(*copy);
    co_return out;
}

} // namespace

std::vector<Route> backup_routes() {
    return {
        {{"POST", "/v1/backup", "A consistent copy of the manager's store, which goes on meanwhile, as bytes", {}},
         make_backup},
    };
}

} // namespace vtpmd::api
