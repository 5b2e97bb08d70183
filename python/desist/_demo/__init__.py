"""`desist demo`: the same work under the same random kills, by workers built in two ways.

Read it in this order:

`with_desist`     the workers built with desist: how the library is meant to be used
`with_threading`  the workers built with `threading`, `queue` and the usual recipe for a kill
`work`            the work: one file of the standard library in, one row out, and where rows go
`measure`         the random kills, the measurements of a run, and when it counts as hung
`compare`         the three runs, one after the other
`report`          progress on the terminal, and the table at the end

Of desist, all of it uses the public names only.
"""
