"""`desist demo`: the same work, the same saboteur, two ways to build the workers.

`job`       the work: one standard library file in, one row out
`store`     where rows and running totals go; shared, and needs a lock
`safe`      the workers built with desist. Read this one first
`naive`     the workers built with threading, queue and a borrowed recipe
`saboteur`  kills a random worker every few milliseconds
`tally`     what a run measured, and whether it held
`compare`   runs all of it and judges
`show`      progress while it runs, one table at the end
"""
