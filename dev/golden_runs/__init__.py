"""One small run of each kind of decision, made before a restructuring and after it, and compared byte for byte."""
