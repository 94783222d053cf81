"""The page that `decision-traces view` opens: a read-only server over run folders, a static bundle, a notebook frame."""
