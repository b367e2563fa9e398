"""What handlers work with: settings, interfaces of engine and text process, metrics, activity, stored responses."""
