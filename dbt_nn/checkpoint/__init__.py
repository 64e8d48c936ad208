"""A checkpoint's files, read and checked: `folder.open_checkpoint` is the way in.

Nothing here knows about a database. Whatever is wrong with a checkpoint is a
`CheckpointError`: one paragraph that says what is wrong, where, and what to do.
Files are untrusted: sizes are bounded before anything is allocated, and names are
compared with the layout's own names, so that only the latter go further.
"""
