"""How a sweep's supervisor and its workers meet in files: journal, mailboxes, the order of trials.

Nothing here trains or imports TensorFlow, so the protocol can be tried with made-up workers.
It may import the modules of `harness` itself and the packages `files` and `system`.
"""
