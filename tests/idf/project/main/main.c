void app_main(void) { int x; }
