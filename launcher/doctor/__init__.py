"""What there is to run on, here or on the hosts of a launch, and the fix for what is wrong."""

from launcher.doctor.examination import examine as examine
