//! The examples run, and their assertions hold.

#[path = "../../examples/cancel_tree.rs"]
mod cancel_tree;
#[cfg(all(target_os = "linux", not(loom)))]
#[path = "../../examples/foreign_call.rs"]
mod foreign_call;
#[cfg(not(loom))]
#[path = "../../examples/select.rs"]
mod select;
#[path = "../../examples/timeout.rs"]
mod timeout;
#[cfg(not(loom))]
#[path = "../../examples/worker.rs"]
mod worker;

#[test]
fn a_block_ends_in_time() {
    timeout::main();
}

#[cfg(all(target_os = "linux", not(loom)))]
#[test]
fn a_read_of_the_standard_library_ends_in_time() {
    foreign_call::main();
}

#[test]
fn cancelling_goes_down_the_tree() {
    cancel_tree::main();
}

#[cfg(not(loom))]
#[test]
fn the_item_of_a_stopped_worker_is_requeued() {
    worker::main();
}

#[cfg(not(loom))]
#[test]
fn a_select_ends_when_its_token_is_cancelled() {
    select::main();
}
