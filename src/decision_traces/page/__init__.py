"""The page that `decision-traces view` opens: a read-only server over runs, a static bundle, a notebook frame."""
