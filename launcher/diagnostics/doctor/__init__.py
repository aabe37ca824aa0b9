"""What there is to run on, here or on the hosts of a launch, and the fix for what is wrong."""

from launcher.diagnostics.doctor.examine import examine as examine
