//! The examples run, and their assertions hold.

#[path = "../../examples/cancel_tree.rs"]
mod cancel_tree;
#[path = "../../examples/timeout.rs"]
mod timeout;
#[cfg(not(loom))]
#[path = "../../examples/worker.rs"]
mod worker;

#[test]
fn a_block_ends_in_time() {
    timeout::main();
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
