"""`desist demo`: the same work, the same saboteur, two ways to build the workers.

`job`       the work: one file of the standard library in, one row out
`store`     where rows and running totals go; shared, so it needs a lock
`safe`      the workers built with desist: read this one first
`naive`     the workers built with threading, queue and a borrowed recipe
`saboteur`  kills a random worker every few milliseconds
`watchdog`  notices that a run does not get on any more
`tally`     what a run measured, and whether it held
`compare`   runs all of it
`show`      progress while it runs
`report`    the table at its end
"""
