//! A block of code with a time limit: every wait inside it ends in time.

use std::time::Duration;

use desist::{Stop, checkpoint, move_on_after, sleep};

/// Work in small steps; it can end at each wait and at each `checkpoint`.
fn count_sheep() -> Result<u32, Stop> {
    let mut sheep = 0;
    while sheep < 1_000_000 {
        checkpoint()?;
        sleep(Duration::from_millis(1))?;
        sheep += 1;
    }
    Ok(sheep)
}

pub(crate) fn main() {
    let counted = move_on_after(Duration::from_millis(20), |_scope| count_sheep());
    match &counted {
        Ok(Some(sheep)) => println!("counted {sheep} sheep"),
        Ok(None) => println!("fell asleep while counting"),
        Err(stop) => println!("an enclosing scope or task is cancelled: {stop}"),
    }
    assert_eq!(counted, Ok(None));
}
